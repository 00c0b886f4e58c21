"""The nine sets in their published layouts: what is asked, which items follow, and every mistake in one sentence."""

import base64
import csv
import json
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import pytest

from tests.mllm_sets import LAYOUTS, png, publish, write_parquet
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import (
    cv_bench,
    gqa,
    hallusion,
    mmbench,
    mme,
    mmvp,
    naturalbench,
    pope,
    scienceqa,
)
from un2clip.evaluation.mllm.questions import BY_LETTER, BY_WORD
from un2clip.evaluation.mllm.tables import find, read_rows
from un2clip.sources.catalogue import check, get_entry

READ = {
    "cv_bench": cv_bench.read,
    "mmvp": lambda folder: mmvp.read(folder, "published")[0],
    "naturalbench": naturalbench.read,
    "pope": pope.read,
    "mme": mme.read,
    "scienceqa": scienceqa.read,
    "hallusion": hallusion.read,
    "gqa": gqa.read,
    "mmbench": lambda folder: mmbench.read(folder, "single"),
}


def save(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def right(questions) -> list[str]:
    return [question.expected for question in questions]


def test_cv_bench(tmp_path: Path) -> None:
    """Both files; the set's own prompt and the instruction; the mean of means, by hand."""
    flat = [
        {"idx": i, "source": "ADE20K" if i < 2 else "COCO", "choices": list("abc"), "answer": "(C)"} for i in range(6)
    ]
    solid = [{"idx": i, "type": "3D", "source": "Omni3D", "answer": "(B)"} for i in range(4)]
    publish("cv_bench", tmp_path, flat)
    usual = LAYOUTS["cv_bench"][1]
    write_parquet(tmp_path / "test_3d.parquet", [usual | {"image": png()} | doc for doc in solid], ["image"])
    questions = cv_bench.read(tmp_path)
    assert [question.id for question in questions][::5] == ["2D 0", "2D 5", "3D 4"][:2] and len(questions) == 10
    assert questions[0].text == usual["prompt"] + BY_LETTER and questions[0].options == {"A": "a", "B": "b", "C": "c"}
    answers = ["C", "A", "C", "C", "C", "A", "(B)", "(A)", "(A)", "(A)"]
    result = cv_bench.score(questions, answers)
    assert result.columns == pytest.approx(
        {"CV-2D ADE20K": 50, "CV-2D COCO": 75, "CV-2D": 62.5, "CV-3D Omni3D": 25, "CV-3D": 25, "CV-Bench": 43.75}
    )
    assert result.unit == "% by source" and [item.value for item in result.items[:2]] == [1.0, 0.0]


def test_cv_bench_questions_of_one_photograph_are_one_sample(tmp_path: Path) -> None:
    usual = LAYOUTS["cv_bench"][1] | {"image": png()}
    rows = [usual | {"idx": i, "source_filename": f"{i // 2}.jpg"} for i in range(4)]
    write_parquet(tmp_path / "test.parquet", rows, ["image"])
    items = cv_bench.score(cv_bench.read(tmp_path), ["A"] * 4).items
    assert [item.sample for item in items] == ["ADE20K 0.jpg"] * 2 + ["ADE20K 1.jpg"] * 2


def mmvp_folder(folder: Path, n: int, text=lambda i: "Is it?") -> Path:
    """Questions.csv with its misspelt column, and images numbered from 1."""
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["lndex", "Question", "Options", "Correct Answer"])
        for i in range(1, n + 1):
            writer.writerow([i, text(i), "(a) Open (half) (b) Closed", f"({'ab'[i % 2 == 0]})"])
            save(folder / f"MMVP Images/{i}.jpg", png())
    return folder


def test_mmvp(tmp_path: Path) -> None:
    """A pair counts if both are right; brackets within an option's text are its own."""
    questions, said = mmvp.read(mmvp_folder(tmp_path, 6), "published")
    assert questions[3].id == "3-4@4" and right(questions) == ["A", "B"] * 3 and said == "labels as the file has them"
    assert questions[0].text == "Is it?\nA. Open (half)\nB. Closed" + BY_LETTER
    result = mmvp.score(questions, ["A", "B", "A", "A", "Open (half)", "(b)"], said)
    assert result.columns == pytest.approx({"MMVP": 200 / 3, "MMVP single": 500 / 6})
    assert len({item.sample for item in result.items}) == 3 and result.protocol.endswith(said)


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_mmvps_four_disputed_answers_are_those_that_are_asked_for(tmp_path: Path, layout: str) -> None:
    """In the published file and in lmms-eval's corrected copy alike; the other 296 are never touched."""
    text = {99: "Tusks?", 100: "Tusks?", 279: "Sitting?", 280: "Sitting?"}
    if layout == "csv":
        mmvp_folder(tmp_path, 300, lambda i: text.get(i, "Is it?"))
    else:
        docs = [
            {"index": i, "question": text.get(i, "Is it?"), "correct_answer": f"({'ab'[(i % 2 == 0) != (i in text)]})"}
            for i in range(1, 301)
        ]
        publish("mmvp", tmp_path, docs)
    published, corrected = (mmvp.read(tmp_path, labels) for labels in ("published", "corrected"))
    assert (published[1], corrected[1]) == ("published labels", "corrected labels")
    assert right(published[0]) == ["A", "B"] * 150
    differing = [
        i + 1 for i, pair in enumerate(zip(*map(right, (published[0], corrected[0])), strict=True)) if len({*pair}) > 1
    ]
    assert differing == [99, 100, 279, 280]


def natural_rows(spelt: str) -> list[dict]:
    """Two groups, of yes/no and of choices, as one revision or the other spells the column of kinds."""
    rows = []
    for index, (kind, words) in enumerate((("yes_no", ("Yes", "No")), ("multiple_choice", ("A", "B")))):
        answers = {f"Image_{i}_Question_{q}": words[q != i] for q, i in product((0, 1), (0, 1))}
        texts = {"Question_0": f"first {index}?", "Question_1": f"second {index}?"}
        colours = {"Image_0": png((255, 0, 0)), "Image_1": png((0, 0, 255))}
        rows.append({"Index": index, "Source": "DOCCI", spelt: kind} | answers | texts | colours)
    return rows


@pytest.mark.parametrize("spelt", ["Question Type", "Question_Type"])
def test_naturalbench_of_either_revision(tmp_path: Path, spelt: str) -> None:
    """A row is a group of four: questions 0 and 1 on images 0 and 1, with the authors' instructions."""
    path = tmp_path / "data/train-00000-of-00001.parquet"
    write_parquet(path, natural_rows(spelt), ["Image_0", "Image_1"])
    questions = naturalbench.read(tmp_path)
    assert [question.id for question in questions[:4]] == ["0@q0-i0", "0@q0-i1", "0@q1-i0", "0@q1-i1"]
    assert right(questions) == ["Yes", "No", "No", "Yes", "A", "B", "B", "A"]
    assert questions[2].text == "second 0? Please answer Yes or No."
    assert questions[5].text == "first 1? Please output the letter corresponding to the correct option."
    assert questions[1].picture.load().getpixel((0, 0)) == (0, 0, 255)
    result = naturalbench.score(questions, ["yes.", "No", "Yes", "Yes", "A", "A", "B", "A"], "generated")
    assert result.columns == pytest.approx({"Acc": 75, "Q-Acc": 50, "I-Acc": 50, "G-Acc": 0})
    assert result.protocol.endswith("; generated") and {item.sample for item in result.items} == {"0", "1"}


def test_naturalbench_flat_is_the_same_set(tmp_path: Path) -> None:
    """Lmms-eval's form has a row a question; ids and right answers are those of the groups."""
    write_parquet(tmp_path / "a/data/train.parquet", natural_rows("Question_Type"), ["Image_0", "Image_1"])
    docs = [{"index": i, "question_type": ("yes_no", "multiple_choice")[i // 4]} for i in range(8)]
    groups, flat = naturalbench.read(tmp_path / "a"), naturalbench.read(publish("naturalbench", tmp_path / "b", docs))
    assert [(q.id, q.expected, q.type) for q in groups] == [(q.id, q.expected, q.type) for q in flat]


def test_pope_by_hand(tmp_path: Path) -> None:
    """Of each subset accuracy, precision, recall, F1 and share of yes, and their means; one photograph, one sample."""
    docs = [
        {"question_id": str(i), "category": subset, "answer": answer, "image_source": f"COCO_{i // 2}"}
        for subset in ("random", "popular")
        for i, answer in enumerate(("yes", "no", "yes", "no", "yes"))
    ]
    questions = pope.read(publish("pope", tmp_path, docs))
    assert questions[0].id == "COCO_0@random 0" and questions[0].text.endswith("image?" + BY_WORD)
    result = pope.score(questions, ["Yes", "No", "No", "No", "Yes", *["No"] * 5])
    assert {
        name: result.columns[f"POPE random {name}"] for name in ("accuracy", "precision", "recall", "F1", "yes share")
    } == (pytest.approx({"accuracy": 80, "precision": 100, "recall": 200 / 3, "F1": 80, "yes share": 40}))
    assert {name: result.columns[f"POPE popular {name}"] for name in ("accuracy", "precision", "F1")} == (
        pytest.approx({"accuracy": 40, "precision": 0, "F1": 0})
    )
    assert result.columns["POPE accuracy"] == pytest.approx(60) and result.columns["POPE F1"] == pytest.approx(40)
    assert len({item.sample for item in result.items}) == 3 and len(result.items) == 10


def test_pope_as_its_authors_publish_it(tmp_path: Path) -> None:
    """Three files of a question a line, beside COCO's photographs: the same items as from the hub."""
    for subset in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": i, "image": "COCO_1.jpg", "text": "Is there a dog in the image?", "label": "no"}
            for i in (1, 2)
        ]
        save(tmp_path / f"own/coco_pope_{subset}.json", "\n".join(map(json.dumps, lines)) + "\n")
    save(tmp_path / "own/val2014/COCO_1.jpg", png())
    questions = pope.read(tmp_path / "own")
    assert [question.id for question in questions][:3] == [
        "COCO_1@adversarial 1",
        "COCO_1@adversarial 2",
        "COCO_1@popular 1",
    ]
    docs = [
        {"question_id": str(i), "category": s, "image_source": "COCO_1", "answer": "no"}
        for s in pope.SUBSETS
        for i in (1, 2)
    ]
    hub = pope.read(publish("pope", tmp_path / "hub", docs))
    assert {(q.id, q.text, q.expected) for q in hub} == {(q.id, q.text, q.expected) for q in questions}
    (tmp_path / "own/val2014/COCO_1.jpg").unlink()
    with pytest.raises(UserError, match=r"coco_pope_adversarial\.json, row 0: no image .*COCO_1\.jpg"):
        pope.read(tmp_path / "own")


def test_mme_has_points(tmp_path: Path) -> None:
    """Ten of perception, all right: 2000; the set's own instruction makes way for LLaVA's."""
    docs = [
        {"category": name, "question_id": f"{name}/{i}.png", "answer": answer}
        for name in (*mme.PERCEPTION, *mme.COGNITION)
        for i in range(2)
        for answer in ("Yes", "No")
    ]
    questions = mme.read(publish("mme", tmp_path, docs))
    assert questions[1].id == "existence existence/0.png@2" and questions[0].text == "Is it a dog?" + BY_WORD
    result = mme.score(questions, right(questions))
    assert (result.columns["MME perception"], result.columns["MME cognition"]) == (2000, 800)
    answers = ["No", *right(questions)[1:]]
    assert mme.score(questions, answers).columns["MME existence"] == pytest.approx(75 + 50)
    publish("mme", tmp_path, docs[:-1])
    with pytest.raises(UserError, match="1 images have not just two questions, such as code_reasoning"):
        mme.read(tmp_path)


def test_scienceqa_takes_the_rows_with_an_image(tmp_path: Path) -> None:
    """A hint stands before the question as context; a row without an image is left out, and ids are those of rows."""
    docs = [{"image": None}, {"hint": "It rains.", "answer": 1}, {"choices": ["a", "b", "c"], "answer": 2, "hint": ""}]
    questions = scienceqa.read(publish("scienceqa", tmp_path, docs))
    assert [question.id for question in questions] == ["1", "2"] and right(questions) == ["B", "C"]
    assert questions[0].text == "Context: It rains.\nWhich?\nA. one\nB. two" + BY_LETTER
    assert scienceqa.score(questions, ["B", "The answer is C."]).columns == {"SciQA-IMG": 100.0}


def test_hallusion(tmp_path: Path) -> None:
    """A set of two figures and two questions; one wrong answer of four costs a figure and a question."""
    docs = [{"figure_id": str(f), "question_id": str(q), "gt_answer": str((f + q) % 2)} for f in (0, 1) for q in (0, 1)]
    questions = hallusion.read(publish("hallusion", tmp_path, docs))
    assert questions[1].id == "VD chart 0@0-1" and right(questions) == ["No", "Yes", "Yes", "No"]
    result = hallusion.score(questions, ["No.", "Yes", "Yes, no", "No"])
    assert result.columns == pytest.approx({"aAcc": 75, "fAcc": 50, "qAcc": 50, "Hallusion": 175 / 3})
    assert result.understood == ("No", "Yes", "", "No")


def test_hallusion_as_its_authors_publish_it(tmp_path: Path) -> None:
    """One JSON beside the figures; a question without a figure is left out."""
    usual = {name: value for name, value in LAYOUTS["hallusion"][1].items() if name != "image"}
    rows = [usual, usual | {"question_id": "1", "filename": None}]
    save(tmp_path / "HallusionBench.json", json.dumps(rows))
    save(tmp_path / "hallusion_bench/VD/a.png", png())
    (question,) = hallusion.read(tmp_path)
    assert question.id == "VD chart 0@0-0" and question.picture.load().size == (8, 6)


def test_gqa_of_either_layout(tmp_path: Path) -> None:
    """Questions and photographs in parquet, or the original JSON beside images/: the same items."""
    hub = gqa.read(publish("gqa", tmp_path / "hub", [{"id": "07", "imageId": "n1"}, {"id": "08", "imageId": "n2"}]))
    asked = {
        key: {"question": "What is it?", "answer": "sofa", "imageId": image, "types": {"structural": "query"}}
        for key, image in (("07", "n1"), ("08", "n2"))
    }
    save(tmp_path / "own/testdev_balanced_questions.json", json.dumps(asked))
    for image in ("n1", "n2"):
        save(tmp_path / f"own/images/{image}.jpg", png())
    own = gqa.read(tmp_path / "own")
    assert [(q.id, q.type, q.text) for q in hub] == [(q.id, q.type, q.text) for q in own]
    assert own[0].id == "n1@07" and own[0].type == "query" and own[0].picture.load() == hub[0].picture.load()
    assert gqa.score(own, ["Sofa.", "couch"]).columns == {"GQA": 50.0}


def mmbench_tsv(folder: Path) -> Path:
    """Two questions of three and two options, and one of the rotations that the file has as well."""
    fields = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    picture = base64.b64encode(png()).decode()
    rows = [
        [7, "Which?", "nan", "one", "two", "three", "nan", "C", "ocr", picture],
        [8, "Is it?", "Look.", "yes", "no", "", "", "A", "scene", picture],
        [1000007, "Which?", "nan", "two", "three", "one", "nan", "B", "ocr", "7"],
    ]
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([fields, *rows])
    return folder


def test_mmbench_in_one_pass_and_circular(tmp_path: Path) -> None:
    """Rotations are made of the unrotated rows, as those in the file; a question counts if all of them are right."""
    single, circular = (mmbench.read(mmbench_tsv(tmp_path), rotations) for rotations in ("single", "circular"))
    assert [question.id for question in single] == ["7", "8"] and right(single) == ["C", "A"]
    assert single[1].text == "Look.\nIs it?\nA. yes\nB. no" + BY_LETTER and single[0].picture.load().size == (8, 6)
    assert [question.id for question in circular] == ["7@0", "7@1", "7@2", "8@0", "8@1"]
    assert right(circular) == ["C", "B", "A", "A", "B"]
    assert dict(circular[1].options) == {"A": "two", "B": "three", "C": "one"}, "as the file's own rotation"
    assert mmbench.score(single, ["three", "B"], "single").columns == {"MMBench single": 50.0}
    assert mmbench.score(circular, ["C", "B", "A", "A", "A"], "circular").columns == {"MMBench circular": 50.0}


#: Of each set a row of a file, by the file's number.
ROWS = {
    "cv_bench": lambda k: [{"idx": k}],
    "naturalbench": lambda k: [{"index": 4 * k + i} for i in range(4)],
    "pope": lambda k: [{"question_id": str(k)}],
    "mme": lambda k: [{"question_id": str(k)}] * 2,
}


@pytest.mark.parametrize("name", READ)
def test_what_the_catalogue_fetches_is_what_is_read(tmp_path: Path, name: str) -> None:
    """Files by the catalogue's names pass its check, are what `fetched` asks for, and all of them are read."""
    layout = get_entry(name).layout
    if name == "mmvp":
        mmvp_folder(tmp_path, 300)
    ids = range(int(layout.ids[0]), int(layout.ids[-1]) + 1) if layout.ids and name != "mmvp" else [""]
    places = [file.replace("{id}", str(i)).replace("*", "-x") for file in layout.files for i in ids]
    for k, place in enumerate(places if name != "mmvp" else []):
        if "images" not in place:
            publish(name, tmp_path, ROWS.get(name, lambda k: [{}])(k), place)
    assert "has the layout of" in check(get_entry(name), tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(any(fnmatch(path, pattern) for pattern in layout.fetched) for path in found)
    wanted = {"mmvp": 300, "naturalbench": 12, "pope": 3, "mme": 8}
    assert len(READ[name](tmp_path)) == wanted.get(name, 1)


def test_a_picture_in_a_tsv_that_is_no_base64(tmp_path: Path) -> None:
    """Named when it is asked about; a cell may hold what Python takes for a line's end."""
    text = mmbench_tsv(tmp_path).joinpath("mmbench_dev_20230712.tsv").read_text()
    picture = text.splitlines()[1].split("\t")[-1]
    save(tmp_path / "mmbench_dev_20230712.tsv", text.replace(picture, "x", 1).replace("Is it?", "Is\u2028it?"))
    questions = mmbench.read(tmp_path, "single")
    assert questions[1].text.startswith("Look.\nIs\u2028it?\nA. yes")
    with pytest.raises(UserError, match=r"\.tsv, row 0, image cannot be read: Error: "):
        questions[0].picture.load()


@pytest.mark.parametrize("name", READ)
def test_pictures_are_read_when_they_are_asked_about(tmp_path: Path, name: str) -> None:
    """The question of each set has its picture; one that is broken is named, when it is asked about."""
    docs = [{}] if name not in ("mmvp", "mme", "naturalbench") else [{"index": i} for i in (1, 2)]
    if name == "mme":
        docs = [{}, {}]
    if name == "naturalbench":
        docs = [{"index": i} for i in range(4)]
    questions = READ[name](publish(name, tmp_path, docs))
    assert questions[-1].picture.load().getpixel((0, 0)) == (200, 30, 60)
    if name != "gqa":
        publish(name, tmp_path, [*docs[:-1], docs[-1] | {"image": b"no picture"}])
        with pytest.raises(UserError, match=r"\.parquet, row \d+, image is not a readable image"):
            READ[name](tmp_path)[-1].picture.load()


@pytest.mark.parametrize("name", READ)
def test_another_schema_is_one_sentence(tmp_path: Path, name: str) -> None:
    """Which columns the file lacks, and which it has; a file that is no parquet is named."""
    path = tmp_path / LAYOUTS[name][0]
    write_parquet(path, [{"a": 1}])
    if name == "gqa":
        write_parquet(tmp_path / "testdev_balanced_images/a.parquet", [{"id": "n1", "image": png()}], ["image"])
    with pytest.raises(UserError, match=r"\.parquet lacks the columns .*; it has a$"):
        READ[name](tmp_path)
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"\.parquet cannot be read: ArrowInvalid"):
        READ[name](tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="has none of "):
        READ[name](tmp_path)


@pytest.mark.parametrize(
    ("name", "doc", "message"),
    [
        ("cv_bench", {"choices": []}, "row 1: a question needs two options at least, got 0"),
        ("cv_bench", {"answer": "(C)"}, "row 1: the answer 'C' is none of the options A, B"),
        ("cv_bench", {"type": "4D"}, "row 1: type must be 2D or 3D, got '4D'"),
        ("cv_bench", {"image": None}, "row 1: it has no picture in image"),
        ("cv_bench", {"idx": 0}, "row 1: question 2D 0 occurs twice"),
        ("mmvp", {"options": "Yes or No"}, "row 1: a question needs two options at least, got 0"),
        ("mmvp", {"correct_answer": "(c)"}, "row 1: the answer 'C' is none of the options A, B"),
        ("mmvp", {"index": 3}, "the questions must be numbered 1, 2, 3, ... and come in pairs"),
        (
            "naturalbench",
            {"question_type": "open"},
            "row 1: question type must be yes_no or multiple_choice, got 'open'",
        ),
        ("pope", {"answer": "maybe"}, "row 1: the answer 'Maybe' is none of the options Yes, No"),
        ("pope", {"category": "hard"}, "row 1: the subset must be random, popular, adversarial, got 'hard'"),
        ("pope", {"question": " "}, "row 1: question must be a text, got ' '"),
        ("mme", {"answer": "both"}, "row 1: the answer 'Both' is none of the options Yes, No"),
        ("mme", {"category": "taste"}, "row 1: the category must be one of existence, .*, got 'taste'"),
        ("scienceqa", {"answer": 2}, "row 1: the answer '2' is none of the options A, B"),
        ("scienceqa", {"choices": ["one"]}, "row 1: a question needs two options at least, got 1"),
        ("hallusion", {"gt_answer": "2"}, "row 1: the answer '2' is none of the options Yes, No"),
        ("hallusion", {"set_id": "x"}, "row 1: set_id must be a whole number, got 'x'"),
        ("gqa", {"answer": ""}, "row 1: answer must be a text, got ''"),
        ("mmbench", {"answer": "C"}, "row 1: the answer 'C' is none of the options A, B"),
        ("mmbench", {"answer": None}, "row 1: answer must be a text, got None"),
        ("mmbench", {"B": "nan"}, "row 1: a question needs two options at least, got 1"),
        ("mmbench", {"B": "nan", "C": "three"}, "row 1: an option before the last is missing"),
    ],
)
def test_a_wrong_row_is_one_sentence(tmp_path: Path, name: str, doc: dict, message: str) -> None:
    """Where it stands and what is wrong; the row before it is good."""
    second = {"cv_bench": {"idx": 1}, "mmvp": {"index": 2}, "naturalbench": {"index": 1}, "pope": {"question_id": "2"}}
    docs = [
        {},
        second.get(name, {"index": 1} if name == "mmbench" else {"question_id": "1"} if name != "gqa" else {"id": "2"}),
    ]
    if name == "scienceqa":
        docs = [{}, {}]
    with pytest.raises(UserError, match=message):
        READ[name](publish(name, tmp_path, [docs[0], docs[1] | doc]))


def test_every_row_has_its_own_picture_in_whatever_group_of_rows(tmp_path: Path) -> None:
    """120 rows in groups of 50, asked out of order."""
    docs = [{"question_id": str(i), "image": png((i, 0, 255 - i))} for i in range(120)]
    questions = pope.read(publish("pope", tmp_path, docs))
    for i in (119, 3, 60, 49, 50, 99, 100, 0):
        assert questions[i].picture.load().getpixel((0, 0)) == (i, 0, 255 - i)
    before = (tmp_path / LAYOUTS["pope"][0]).stat()
    docs[98]["image"], docs[99]["image"] = docs[99]["image"], docs[98]["image"]
    after = (publish("pope", tmp_path, docs) / LAYOUTS["pope"][0]).stat()
    assert after.st_size == before.st_size and questions[99].picture.load().getpixel((0, 0)) == (98, 0, 157)


def test_a_column_that_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": "there.png"}])
    with pytest.raises(UserError, match="column image holds string, not pictures"):
        read_rows([tmp_path / "a.parquet"], (), ("image",))


def test_a_photograph_that_is_not_there_or_leads_out_of_the_folder(tmp_path: Path) -> None:
    """A name from a file is no path to anywhere."""
    publish("gqa", tmp_path, [{"imageId": "n1"}])
    write_parquet(
        tmp_path / "testdev_balanced_images/testdev-00000-of-00001.parquet", [{"id": "n2", "image": png()}], ["image"]
    )
    with pytest.raises(UserError, match="row 0: there is no picture n1 in testdev_balanced_images"):
        gqa.read(tmp_path)
    save(tmp_path / "secret.jpg", png())
    (tmp_path / "own/images").mkdir(parents=True)
    asked = {"1": {"question": "What?", "answer": "sofa", "imageId": "../../secret", "types": {}}}
    save(tmp_path / "own/testdev_balanced_questions.json", json.dumps(asked))
    with pytest.raises(UserError, match="row 0: no image"):
        gqa.read(tmp_path / "own")


def test_the_first_pattern_that_fits_decides(tmp_path: Path) -> None:
    for name in ("b/2.parquet", "b/1.parquet", "c.json"):
        save(tmp_path / name, "")
    assert [path.name for path in find(tmp_path, "a/*", "b/*.parquet", "*.json")] == ["1.parquet", "2.parquet"]
