"""What guards a download from its URLs, and how outcomes are read; the whole command is in tests/e2e."""

import datetime
import socket
import ssl
import time
import urllib.request
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.web import nothing, serving
from un2clip.config import build, read_params
from un2clip.errors import UserError
from un2clip.sources.download import Download
from un2clip.sources.download.rows import may_pass, outcome, read_lists
from un2clip.sources.download.worker import Guard, Refused, is_public, opener

PUBLIC = "93.184.216.34"


def guarded(*, private: bool = False, max_bytes: int = 10_000, deadline_s: float = 30) -> urllib.request.OpenerDirector:
    return opener(Guard(allow_private_addresses=private, max_bytes=max_bytes, deadline_s=deadline_s))


@pytest.fixture
def names(monkeypatch) -> dict[str, list[list[str]]]:
    """The network, faked: name -> what each look-up in turn answers. PUBLIC leads to this machine."""
    answers: dict[str, list[list[str]]] = {}
    look_up, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host, port, *args, **words):
        if host not in answers:
            return look_up(host, port, *args, **words)
        told = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in told]

    def create_connection(address, timeout=None, *args, **words):
        return connect(("127.0.0.1" if address[0] == PUBLIC else address[0], address[1]), timeout)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    return answers


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False), ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.100.100.200", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
    ],
)  # fmt: skip
def test_addresses(address: str, public: bool) -> None:
    """Private, loopback, link-local, shared, multicast, wrapped: each is told from a public one; a hand-made table."""
    assert is_public(address) is public


def test_a_redirect_into_the_private_range_is_not_followed(names) -> None:
    """The first host is public and is asked; where it sends us is judged like any other address."""

    def redirect(handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"http://127.0.0.1:{handler.server.server_port}/secret")
        handler.end_headers()

    names["public.test"] = [[PUBLIC]]
    with serving(redirect) as (port, asked):
        with pytest.raises(Refused, match=r"refused address 127\.0\.0\.1"):
            guarded().open(f"http://public.test:{port}/image", timeout=5)
        assert asked == ["/image"]


@pytest.mark.parametrize("look_ups", [[[PUBLIC], ["127.0.0.2"]], [[PUBLIC, "127.0.0.2"]]], ids=["rebound", "mixed"])
def test_a_name_is_looked_up_once_and_every_address_judged(names, look_ups: list[list[str]]) -> None:
    """A name that answers otherwise the second time leads to the first answer; one private address refuses a name."""

    rebound = len(look_ups) > 1
    names["rebinding.test"] = list(look_ups)
    with serving(nothing) as (port, asked):
        with nullcontext() if rebound else pytest.raises(Refused, match="127.0.0.2"):
            assert guarded().open(f"http://rebinding.test:{port}/", timeout=5).status == 204
        assert asked == (["/"] if rebound else [])


def test_certificates_are_checked(names, monkeypatch, tmp_path) -> None:
    """https goes through the same guard, and a certificate must be known, of this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "un2clip test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("public.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "known.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "known.pem", tmp_path / "key.pem")
    names["public.test"] = names["other.test"] = [[PUBLIC]]
    names["private.test"] = [["10.0.0.1"]]
    with serving(nothing, context) as (port, asked):
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            guarded().open(f"https://public.test:{port}/unknown", timeout=5)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "known.pem"))
        assert guarded().open(f"https://public.test:{port}/known", timeout=5).status == 204
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED.*other.test"):
            guarded().open(f"https://other.test:{port}/another", timeout=5)
        with pytest.raises(Refused, match="10.0.0.1"):
            guarded().open(f"https://private.test:{port}/private", timeout=5)
        assert asked == ["/known"]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://93.184.216.34/x", "data:,x", "gopher://93.184.216.34/"])
def test_only_http_and_https(url: str) -> None:
    """Files of this machine and other protocols are no sources of images."""
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        guarded(private=True).open(url, timeout=5)


def test_proxies_of_the_environment_are_not_asked(monkeypatch) -> None:
    """A proxy would look names up itself, behind the guard: only who allows private addresses gets it."""

    with serving(nothing) as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(Refused):
            guarded().open("http://127.0.0.9:1/", timeout=5)
        assert asked == []
        assert guarded(private=True).open("http://images.test/1", timeout=5).status == 204
        assert asked == ["http://images.test/1"]


@pytest.mark.parametrize("length", ["announced", "chunked", "silent"])
def test_no_more_is_read_than_allowed(length: str) -> None:
    """A body above max_bytes ends the reading, whether its length is said or not; one below arrives whole."""

    def answer(handler) -> None:
        size = int(handler.path[1:])
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.close_connection = True
        if length == "announced":
            handler.send_header("Content-Length", str(size))
        if length == "chunked":
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for _ in range(size // 1000):
                handler.wfile.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n" if length == "chunked" else b"x" * 1000)
            handler.wfile.write(b"0\r\n\r\n" if length == "chunked" else b"")
        except OSError:
            pass  # the reader has gone, as it should

    with serving(answer) as (port, _):
        assert guarded(private=True).open(f"http://127.0.0.1:{port}/5000", timeout=5).read() == b"x" * 5000
        with pytest.raises(Refused, match="too many bytes"):
            guarded(private=True).open(f"http://127.0.0.1:{port}/2000000", timeout=5).read()


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_dripping_answer_ends_at_the_deadline(part: str) -> None:
    """Bytes that come more often than the timeout, but without end, stop at the deadline."""

    def answer(handler) -> None:
        handler.send_response(200)
        if part == "body":
            handler.end_headers()
        else:
            handler.flush_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x: y\r\n")
                time.sleep(0.05)
        except OSError:
            pass

    with serving(answer) as (port, _):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="deadline"):
            guarded(private=True, deadline_s=0.3).open(f"http://127.0.0.1:{port}/", timeout=5).read()
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("message", "name", "again"),
    [
        ("HTTP Error 404: Not Found", "http 404", False), ("HTTP Error 503: timed out", "http 503", True),
        ("HTTP Error 429: Too Many Requests", "http 429", True), ("<urlopen error timed out>", "timeout", True),
        ("The read operation timed out", "timeout", True), ("deadline: timed out", "timeout", True),
        ("<urlopen error [Errno 111] Connection refused>", "connection error", True),
        ("<urlopen error [Errno -2] Name or service not known>", "connection error", True),
        ("IncompleteRead(3 bytes read, 4 more expected)", "connection error", True),
        ("Remote end closed connection without response", "connection error", True),
        ("[Errno 104] Connection reset by peer", "connection error", True),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] expired (_ssl.c:1006)>", "bad certificate", False),
        ("refused address 10.0.0.1", "refused address", False), ("too many bytes", "too large", False),
        ("<urlopen error unknown url type: file>", "not a web address", False),
        ("Use of image disallowed by X-Robots-Tag directive", "opt-out", False),
        ("Image decoding error", "not an image", False), ("aspect ratio too large", "too long", False),
        ("something new", "other error", False),
    ],
)  # fmt: skip
def test_outcomes(message: str, name: str, again: bool) -> None:
    """Each message has its outcome, and only what may pass is tried again: a hand-made table."""
    assert outcome("failed_to_download", message) == name
    assert may_pass(name) is again


def test_lists(tmp_path) -> None:
    """tsv as Conceptual Captions has it (no header, quotes are text), csv and parquet by column; bad lines counted."""
    (tmp_path / "a.tsv").write_text('"a\thttp://x/1\nno tab\nb"é\thttp://x/2\n\nc\td\te\n')
    (tmp_path / "b.csv").write_text('id,TEXT,URL\n1,"a, ""b""\nc",http://x/3\n')
    content = {"URL": ["http://x/4"], "n": [1], "TEXT": [None]}
    pa.parquet.write_table(pa.table(content), tmp_path / "c.parquet")
    lists = [tmp_path / name for name in ("a.tsv", "b.csv", "c.parquet")]
    table, malformed = read_lists(lists, "TEXT", "URL")
    assert malformed == 2
    assert table.to_pydict() == {
        "caption": ['"a', 'b"é', 'a, "b"\nc', None],
        "url": ["http://x/1", "http://x/2", "http://x/3", "http://x/4"],
        "row": [0, 1, 2, 3],
    }


@pytest.mark.parametrize("name", ["none.tsv", "wrong.csv", "binary.parquet", "latin.tsv", "list.txt"])
def test_a_list_that_cannot_be_read_is_one_line(tmp_path, name: str) -> None:
    """Absent, without the columns, broken, not UTF-8, of another kind: a UserError that says what a list is."""
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.parquet").write_bytes(b"no")
    (tmp_path / "latin.tsv").write_bytes(b"caf\xe9\thttp://x/1\n")
    (tmp_path / "list.txt").write_text("http://x/1\n")
    with pytest.raises(UserError, match=f"cannot read .*{name}: .*; a list is a tsv") as error:
        read_lists([tmp_path / name], "caption", "url")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("threads", 0, "download.threads must be at least 1, got 0"),
        ("retries", -1, "download.retries must be at least 0, got -1"),
        ("deadline_s", 0.0, "download.deadline_s must be above 0, got 0.0"),
        ("cluster", "h:1", "download.cluster must be empty where distributor is multiprocessing, got 'h:1'"),
        ("jpeg_quality", 101, "download.jpeg_quality must be 1 to 100, got 101"),
    ],
)
def test_numbers_are_checked(pytestconfig, name: str, value: float, says: str) -> None:
    """A number out of range is named."""
    section = read_params(pytestconfig.rootpath / "params.yaml")["download"]
    build(Download, section, "download")
    with pytest.raises(UserError, match=says):
        build(Download, section | {name: value}, "download")
