import gzip
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import collect
from servescope.collect import Absent, Reading, prometheus
from servescope.collect.prometheus import Prometheus, parse_page
from tests.support.served import CERTIFICATE

PAGES = Path(__file__).with_name("pages")
names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,20}", fullmatch=True).filter(
    lambda name: not name.endswith("_created")
)
label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True)
label_values = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['a"b', "\\", "\\n", "\n", 'x="y",z="', "} 5", "# no comment", "a,b", "\r", "\u2028"]
)
readings = st.builds(
    Reading, names, st.floats(allow_nan=False), st.dictionaries(label_names, label_values)
)
blanks = st.sampled_from(["", " ", "\t "])


def escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@st.composite
def pages(draw):
    """Readings, and a page on which they stand as an exposition may write them."""
    found, lines = draw(st.lists(readings, max_size=5)), []
    for one in found:
        blank, comma = draw(blanks), draw(st.sampled_from(["", ","]))
        pairs = [f'{k}{blank}={blank}"{escape(v)}"' for k, v in one.labels.items()]
        labels = f"{blank},{blank}".join(pairs) + (comma if pairs else "")
        braces = f"{{{blank}{labels}{blank}}}" if pairs or draw(st.booleans()) else " "
        stamp = draw(st.sampled_from(["", " 1395066363000", " 1.5", "\t-3"]))
        exemplar = draw(st.sampled_from(["", ' # {trace_id="a b"} 0.67 1.5']))
        lines.append(f"{one.name}{braces}{blank}{one.value!r}{stamp}{exemplar}{blank}")
        lines += draw(st.sampled_from([[], [""], ["# TYPE x counter"], ["# EOF"], ["  # x"]]))
    return found, "".join(line + draw(st.sampled_from(["\n", "\r\n"])) for line in lines)


@given(pages())
def test_what_a_page_says_is_read_as_it_stands_however_it_is_written(page):
    found, text = page
    assert parse_page(text) == (found, 0)


@given(pages(), st.data())
def test_a_bad_line_is_counted_and_costs_no_other_line(page, data):
    found, text = page
    bad = ["x", "x{", 'x{a="b} 1', 'x{a="b"} one', "x 1 2 3", "1x 1", "x{a=b} 1", "<html>", "\0"]
    bad += ['x{"quoted.name"} 1', "é 1", "x 1_000", "x 0x1p3", 'x{a="b""c"} 1', "x{,} 1", "x+1"]
    some = data.draw(st.lists(st.sampled_from(bad), max_size=3))
    assert parse_page("".join(f"{line}\n" for line in some) + text) == (found, len(some))


@given(st.text() | st.text('a1{}=",\\ #\n\t+.'))
def test_no_text_makes_the_parser_raise(text):
    parse_page(text)


def test_a_last_line_without_its_end_is_not_believed():
    assert parse_page("a 1\nb 12") == ([Reading("a", 1.0)], 1)


@pytest.mark.parametrize(
    ("page", "count", "sample"),
    [
        ("vllm-0.32", 410, Reading("vllm:kv_cache_usage_perc", 0.0)),
        ("sglang-0.5.23", 601, Reading("sglang:process_cpu_seconds_total", 0.21999999999999953)),
    ],
)
def test_the_pages_of_real_engines_are_read_whole(page, count, sample):
    found, bad_lines = parse_page((PAGES / f"{page}.txt").read_text())
    assert (len(found), bad_lines) == (count, 0)
    assert any((one.name, one.value) == (sample.name, sample.value) for one in found)
    assert not any(one.name.endswith("_created") for one in found)


# --- over HTTP


@contextmanager
def serving(answer, *, tls: bool = False):
    """A server whose GET handler is `answer(handler)`; its URL, and the requests that came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self)
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def page(body: bytes, *, status: int = 200, length: int | None = None, **headers: str):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_page_is_fetched_without_a_key_from_the_path_that_was_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(page(b'a{b="\xc3\xa9"} 1\n')) as (url, came):
        for path in ("", "/metrics", "/other/page?x=1,2"):
            collector = collect.parse("--collect", f"prometheus:{url}{path}")
            assert list(collector.read()) == [Reading("a", 1.0, {"b": "é"})]
    assert [one.path for one in came] == ["/metrics", "/metrics", "/other/page?x=1,2"]
    assert not any("secret" in str(one.headers) for one in came)


def test_a_page_may_come_over_tls_from_a_server_that_is_trusted(monkeypatch):
    with serving(page(b"a 1\n"), tls=True) as (url, _):
        with pytest.raises(OSError, match="certificate verify failed"):
            Prometheus(url=url).read()
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert list(Prometheus(url=url).read()) == [Reading("a", 1.0)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page(b"", status=404), "HTTP 404"),
        (page(b"a 1\n", status=302, Location="/metrics"), "HTTP 302"),
        (page(b"<html>\n<p>hello\n</html>\n"), "no metric there"),
        (page(b""), "no metric there"),
        (page(b"\xff\x00" * 99), "no metric there"),
    ],
)
def test_an_answer_that_is_no_page_of_metrics_is_refused_in_words(answer, words):
    with serving(answer) as (url, _), pytest.raises(Absent, match=words):
        Prometheus(url=url).read()


def test_a_page_that_was_cut_is_not_believed():
    with (
        serving(page(b"a 1\nb 2\n", length=20)) as (url, _),
        pytest.raises(OSError, match="ended early"),
    ):
        Prometheus(url=url).read()


def test_a_page_may_come_in_chunks_or_packed_or_end_with_the_connection():
    body = b"a 1\nb 2\n"
    for framed, headers in (
        (b"4\r\na 1\n\r\n4\r\nb 2\n\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}),
        (gzip.compress(body), {"Content-Encoding": "gzip"}),
        (body, {}),
    ):

        def answer(handler, framed=framed, headers=headers):
            handler.send_response(200)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(framed)

        with serving(answer) as (url, _):
            assert list(Prometheus(url=url).read()) == [Reading("a", 1.0), Reading("b", 2.0)]


def test_an_openmetrics_page_is_read_though_another_form_was_asked_for():
    body = (
        b'# TYPE a counter\n# UNIT a seconds\na_total{b="c"} 17.0 1520879607.789 '
        b'# {trace_id="KOO"} 0.5 1520879607.1\na_created{b="c"} 1520430000.1\n# EOF\n'
    )
    with serving(page(body)) as (url, came):
        assert list(Prometheus(url=url).read()) == [Reading("a_total", 17.0, {"b": "c"})]
    assert came[0].headers["Accept"] == "text/plain;version=0.0.4"


def test_a_page_that_is_too_large_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(prometheus, "MAX_BYTES", 1000)
    with serving(page(b"a 1\n" * 250)) as (url, _):
        assert len(list(Prometheus(url=url).read())) == 250
    with serving(page(b"a 1\n" * 251)) as (url, _), pytest.raises(OSError, match="larger"):
        Prometheus(url=url).read()


def test_a_server_that_drips_its_page_runs_out_of_time():
    done = threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while not done.wait(0.01):
                handler.wfile.write(b"a 1\n")
        except OSError:
            pass

    with serving(drip) as (url, _):
        with pytest.raises(OSError, match="timed out"):
            Prometheus(url=url, timeout="100ms").read()
        done.set()


def test_lines_that_are_none_are_told_in_a_reading_of_their_own():
    with serving(page(b"a 1\n?\n?\n")) as (url, _):
        found = list(Prometheus(url=url).read())
    assert found == [Reading("a", 1.0), Reading("collect_bad_lines", 2.0)]
