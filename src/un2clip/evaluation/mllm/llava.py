"""A LLaVA in a folder as transformers saves it, asked as LLaVA-1.5 was: padded pictures, greedy, one turn.

Transformers' own processor crops the middle of a picture and resizes it by torch; LLaVA-1.5 pads it to a square with
the mean colour and resizes it by Pillow. Here it is LLaVA's way whatever the folder says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from un2clip.assistants.pictures import check_layer, picture_processor
from un2clip.errors import UserError, reason
from un2clip.evaluation.mllm.questions import Question
from un2clip.files.texts import read_json


class Llava:
    """The model and its processor.

    Attributes:
        protocol: what of it moves the answers: dtype, length, the picture's way in.
    """

    def __init__(self, model: Any, processor: Any, *, max_new_tokens: int) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        dtype = str(model.dtype).removeprefix("torch.")
        self.protocol = (
            f"greedy, {max_new_tokens} tokens at most, {dtype}, picture padded to a square and resized by PIL"
        )

    @torch.inference_mode()
    def generate(self, questions: Sequence[Question]) -> list[str]:
        """What the model says to each question, without the blanks around it; greedy, all in one batch."""
        inputs = self._inputs(questions, [self._prompt(question) for question in questions])
        said = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        answers = said[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]

    @torch.inference_mode()
    def likeliest(self, question: Question) -> str:
        """The option of the highest log-likelihood, summed over its tokens; of equal ones the first.

        Raises:
            UserError: the question has no options, or an option's tokens merge with the prompt's.
        """
        if not question.options:
            raise UserError(f"question {question.id} has no options of which one could be the likeliest")
        prompt = self._prompt(question)
        start = self._inputs([question], [prompt])["input_ids"]
        found = {option: self._likelihood(question, prompt, option, start) for option in question.options}
        return max(found, key=lambda option: found[option])

    def _likelihood(self, question: Question, prompt: str, option: str, start: Tensor) -> float:
        blank = "" if prompt[-1:].isspace() else " "
        inputs = self._inputs([question], [f"{prompt}{blank}{option}"])
        tokens, n = inputs["input_ids"], start.shape[1]
        if tokens.shape[1] <= n or not torch.equal(tokens[:, :n], start):
            raise UserError(f"the tokenizer does not keep the option {option!r} apart from the prompt before it")
        logits = self.model(**inputs).logits[0, n - 1 : -1].float().log_softmax(dim=-1)
        return float(logits.gather(1, tokens[0, n:, None]).sum())

    def _prompt(self, question: Question) -> str:
        text = question.text.replace(self.processor.image_token, "").strip()
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        prompt: str = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        if prompt.count(self.processor.image_token) != 1 or text not in prompt:
            raise UserError(f"the chat template does not place the picture and the text of question {question.id}")
        return prompt

    def _inputs(self, questions: Sequence[Question], prompts: list[str]) -> Any:
        tokenizer = self.processor.tokenizer
        begun = bool(tokenizer.bos_token) and prompts[0].startswith(tokenizer.bos_token)
        images = [question.picture.load() for question in questions]
        inputs = self.processor(
            images=images, text=prompts, padding=True, add_special_tokens=not begun, return_tensors="pt"
        )
        return inputs.to(self.model.device, self.model.dtype)


def load_llava(folder: Path, device: torch.device, *, dtype: str, max_new_tokens: int) -> Llava:
    """Open a folder of LlavaForConditionalGeneration and its processor.

    Args:
        folder: config.json, safetensors and the processor's files, such as a copy of llava-hf/llava-1.5-7b-hf.
        device: where it is computed.
        dtype: of the weights.
        max_new_tokens: of an answer.

    Raises:
        UserError: it is no LLaVA, weights are missing or left over, it has no chat template, or its processor does not
            fit its encoder.
    """
    try:
        kind = read_json(folder / "config.json")["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no folder of a transformers model: {reason(error)}") from None
    if kind != "llava":
        raise UserError(
            f"{folder} is a model of the kind {kind!r}; only llava (LlavaForConditionalGeneration) is asked"
        )
    try:
        model, loaded = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts do
        raise UserError(f"{folder} cannot be loaded: {reason(error)}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, loaded[what])):
            raise UserError(
                f"{folder}: {len(keys)} {what.replace('_', ' ')}, such as {keys[0]}; its weights are not whole"
            )
    model = model.to(device).eval()
    check_layer(model.config.vision_feature_layer, model.config.vision_config.num_hidden_layers, str(folder))
    _prepare(processor, model, folder)
    _check_image_tokens(model, processor, folder)
    return Llava(model, processor, max_new_tokens=max_new_tokens)


def _prepare(processor: Any, model: Any, folder: Path) -> None:
    """Pictures padded and by PIL, texts padded before their begin, no sampling."""
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{folder} has no chat template, so nobody knows how it was trained to be asked")
    place, known = processor.image_token, processor.tokenizer.get_vocab().get(processor.image_token)
    if known is None or known != model.config.image_token_id or known >= model.get_input_embeddings().num_embeddings:
        wanted = model.config.image_token_id
        raise UserError(f"{folder}: the vocabulary has {place} at {known}, but the model keeps {wanted} for pictures")
    if processor.patch_size is None:
        raise UserError(f"{folder}: its processor has no patch_size, so it can't tell how many tokens a picture has")
    own, side = processor.image_processor, model.config.vision_config.image_size
    sizes = dict(own.crop_size if getattr(own, "do_center_crop", False) else own.size)
    if made := {value for value in sizes.values() if value} - {side}:
        raise UserError(f"{folder}: the processor makes pictures of {max(made)} pixels, but its encoder takes {side}")
    processor.image_processor = picture_processor(side, own.image_mean, own.image_std, own.resample, "pad")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    for name in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, name, None)


@torch.inference_mode()
def _check_image_tokens(model: Any, processor: Any, folder: Path) -> None:
    """As many places in the text as the encoder gives patch tokens: one less or more is an error, or is ignored."""
    side = model.config.vision_config.image_size
    blank = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    given = len(model.get_image_features(pixel_values=blank).pooler_output[0])
    places = processor.replace_image_token({"pixel_values": blank.cpu().float().numpy()}, 0).count(
        processor.image_token
    )
    if places != given:
        extra, strategy = processor.num_additional_image_tokens, processor.vision_feature_select_strategy
        raise UserError(
            f"{folder}: the processor keeps {places} places for a picture, but the encoder gives {given} tokens; "
            "with an encoder that has a class token it needs num_additional_image_tokens 1 and "
            f"vision_feature_select_strategy 'default', and has {extra} and {strategy!r}"
        )
