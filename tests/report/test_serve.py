from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import DataError, UsageError
from uphold.measure.comparison import compare_runs
from uphold.measure.history import history
from uphold.report.history import write_history
from uphold.report.serve import ReportServer, report_server
from uphold.report.write import write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp"
Start = Callable[[Path], ReportServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Serve a folder on a free port for the time of a test."""
    running: list[tuple[ReportServer, threading.Thread]] = []

    def begin(folder: Path) -> ReportServer:
        server = report_server(folder, 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield begin
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def saved(folder: Path, name: str = "new", report: bool = True) -> Path:
    """A comparison of two small runs, with its report."""
    from tests.conftest import make_record, make_run

    runs = [
        make_run(
            folder.parent / f".{folder.name}-{role}", [make_record(i, i % step > 0, role) for i in range(20)], role
        )
        for role, step in (("old", 3), (name, 4))
    ]
    compare_runs(*runs).save(folder)
    if report:
        write_report(folder)
    return folder


def ask(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def raw(server: ReportServer, request: bytes) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def key_of(server: ReportServer, folder: str) -> str:
    return next(entry.key for entry in server.listing.look().entries if entry.folder == folder)


def test_the_list_and_the_reports_it_leads_to(start: Start, tmp_path: Path) -> None:
    saved(tmp_path / "results/a")
    (tmp_path / "results/a/gate.json").write_text('{"verdict": "fail", "checks": []}')
    server = start(tmp_path / "results")
    answer, page = ask(server, "/")
    assert answer.status == 200
    text = page.decode()
    assert "old → new" in text
    assert "✗ fail" in text
    assert "65.00% → 75.00%" in text
    assert "+10.00 points" in text
    for name, kind in (("report.html", "text/html"), ("report.md", "text/plain"), ("report.json", "application/json")):
        address = f"/e/{key_of(server, 'a')}/{name}"
        assert address in text
        answer, content = ask(server, address)
        assert (answer.status, content) == (200, (tmp_path / "results/a" / name).read_bytes())
        assert (answer.getheader("Content-Type") or "").startswith(kind)


def test_a_missing_report_is_made_without_touching_the_folder(start: Start, tmp_path: Path) -> None:
    folder = saved(tmp_path / "results/a", report=False)
    before = sorted(folder.rglob("*"))
    server = start(tmp_path / "results")
    address = f"/e/{key_of(server, 'a')}/report.html"
    first, second = (ask(server, address)[1] for _ in range(2))
    assert first == second
    assert b"old" in first
    assert sorted(folder.rglob("*")) == before
    write_report(folder, tmp_path / "elsewhere")
    assert first == (tmp_path / "elsewhere/report.html").read_bytes()


def test_a_history_is_listed(start: Start, tmp_path: Path) -> None:
    from tests.conftest import make_record, make_run

    runs = [make_run(tmp_path / name, [make_record(0, name == "b", name)], name) for name in ("a", "b")]
    write_history(history(runs), tmp_path / "results/h")
    server = start(tmp_path / "results")
    address = f"/e/{key_of(server, 'h')}/history.html"
    assert address in ask(server, "/")[1].decode()
    assert ask(server, address)[1] == (tmp_path / "results/h/history.html").read_bytes()
    (tmp_path / "results/h/history.html").unlink()
    assert "there is no history.html" in ask(server, "/")[1].decode()
    answer, content = ask(server, address)
    assert (answer.status, content) == (404, b"there is no history.html in this folder\n")


def test_damage_is_told_and_breaks_nothing(start: Start, tmp_path: Path) -> None:
    saved(tmp_path / "results/good")
    folder = saved(tmp_path / "results/runless", report=False)
    shutil.rmtree(folder / "runs")
    (tmp_path / "results/bad").mkdir()
    (tmp_path / "results/bad/comparison.json").write_text("{")
    server = start(tmp_path / "results")
    page = ask(server, "/")[1].decode()
    assert "3 results" in page
    assert "comparison.json is not valid JSON" in page
    answer, content = ask(server, f"/e/{key_of(server, 'runless')}/report.html")
    assert answer.status == 404
    assert b"no finished run in" in content
    assert ask(server, f"/e/{key_of(server, 'bad')}/report.html")[0].status == 404


def test_an_empty_folder_says_what_to_do(start: Start, tmp_path: Path) -> None:
    assert b"There is nothing to show yet" in ask(start(tmp_path), "/")[1]


def test_security_headers_are_on_every_answer(start: Start, tmp_path: Path) -> None:
    saved(tmp_path / "results/a")
    server = start(tmp_path / "results")
    key = key_of(server, "a")
    for path in ("/", f"/e/{key}/report.html", f"/e/{key}/report.json", "/nothing"):
        answer, _ = ask(server, path)
        policy = answer.getheader("Content-Security-Policy") or ""
        assert policy.startswith("default-src 'none'")
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("X-Frame-Options") == "DENY"
        assert answer.getheader("Referrer-Policy") == "no-referrer"
        assert answer.getheader("Cache-Control") == "no-store"
        assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        assert answer.getheader("Server") == "uphold"
        assert ("sandbox" in policy) == (path != "/")
        assert "allow-same-origin" not in policy


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8321", "localhost", "LOCALHOST:9", "[::1]", "[::1]:8321"])
def test_this_machine_may_be_named_in_any_way(start: Start, tmp_path: Path, host: str) -> None:
    assert ask(start(tmp_path), "/", Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test:80", "", "localhost:x", "a@localhost"]
)
def test_foreign_names_are_refused(start: Start, tmp_path: Path, host: str) -> None:
    answer, content = ask(start(tmp_path), "/", Host=host)
    assert (answer.status, content) == (421, b"421 Misdirected Request\n")


def test_a_request_names_one_host(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path)
    assert b" 421 " in raw(server, b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n"
    assert b" 421 " in raw(server, twice).splitlines()[0]


def test_only_reading_is_answered(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "NONSENSE"):
        answer, _ = ask(server, "/", method)
        assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")
    answer, content = ask(server, "/", "HEAD")
    assert (answer.status, content) == (200, b"")
    assert int(answer.getheader("Content-Length") or 0) > 1000


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/results/a/report.html",
        "/a/report.html",
        "//etc/passwd",
        "/%2e%2e/secret.txt",
        "/e/KEY/../../secret.txt",
        "/e/KEY/%2e%2e%2fsecret.txt",
        "/e/KEY/comparison.json",
        "/e/KEY/runs/old/run.json",
        "/e/KEY/",
        "/e/KEY",
        "/e/",
        "/e/../report.html",
        "/e/KEY/report.html/",
        "/e/KEY/report.html%00.txt",
        "/e/KEY/REPORT.HTML",
        "/e/0000000000000000/report.html",
        "/favicon.ico",
        "http://localhost/../secret.txt",
    ],
)
def test_nothing_else_is_served(start: Start, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    saved(tmp_path / "results/a")
    server = start(tmp_path / "results")
    line = f"GET {path.replace('KEY', key_of(server, 'a'))} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = raw(server, line.encode())
    assert b" 404 " in answer.splitlines()[0]
    assert b"secret" not in answer


def test_links_lead_nowhere(start: Start, tmp_path: Path) -> None:
    (tmp_path / "secret.html").write_text("secret")
    folder = saved(tmp_path / "results/a")
    (folder / "report.html").unlink()
    try:
        (folder / "report.html").symlink_to(tmp_path / "secret.html")
    except OSError:
        pytest.skip("no links on this file system")
    server = start(tmp_path / "results")
    address = f"/e/{key_of(server, 'a')}/report.html"
    answer, content = ask(server, address)
    assert (answer.status, content) == (404, b"report.html lies outside the served folder, where nothing is read\n")
    # A folder that is swapped for a link after it was listed.
    shutil.move(folder, tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    (tmp_path / "moved/report.html").unlink()
    (tmp_path / "moved/report.html").write_text("secret")
    answer, content = ask(server, address)
    assert (answer.status, b"secret" in content) == (404, False)


def test_no_report_is_made_of_what_lies_elsewhere(start: Start, tmp_path: Path) -> None:
    folder = saved(tmp_path / "results/a", report=False)
    shutil.move(folder / "runs", tmp_path / "runs")
    try:
        (folder / "runs").symlink_to(tmp_path / "runs")
    except OSError:
        pytest.skip("no links on this file system")
    server = start(tmp_path / "results")
    answer, content = ask(server, f"/e/{key_of(server, 'a')}/report.html")
    assert (answer.status, b"lies outside the served folder" in content) == (404, True)


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                                      b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"])  # fmt: skip
def test_nonsense_is_survived(start: Start, tmp_path: Path, request_: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    server = start(tmp_path)
    assert b"Traceback" not in raw(server, request_)
    assert ask(server, "/")[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_many_ask_at_once(start: Start, tmp_path: Path) -> None:
    saved(tmp_path / "results/a", report=False)
    server = start(tmp_path / "results")
    address = f"/e/{key_of(server, 'a')}/report.html"
    pages: list[bytes] = []
    threads = [threading.Thread(target=lambda: pages.append(ask(server, address)[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 8
    assert len(set(pages)) == 1


def test_only_this_machine_is_listened_to(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path)
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_a_taken_port_and_a_missing_folder_are_one_line(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path)
    with pytest.raises(
        UsageError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\): choose another"
    ):
        report_server(tmp_path, server.server_address[1])
    with pytest.raises(DataError, match="is no folder"):
        report_server(tmp_path / "nothing", 0)


def test_in_a_browser(browser: Any, start: Start, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    saved(tmp_path / "results/a")
    saved(tmp_path / f"results/{HOSTILE.replace('/', '')}", f"new {HOSTILE}")
    (tmp_path / "results/a/gate.json").write_text('{"verdict": "pass", "checks": []}')
    (tmp_path / "results/bad").mkdir()
    (tmp_path / "results/bad/history.json").write_text(json.dumps({"versions": HOSTILE}))
    server = start(tmp_path / "results")
    problems: list[str] = []
    requests: set[str] = set()
    for width, scheme in ((1200, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append("a dialog"))
        page.on("request", lambda request: requests.add(request.url))
        page.goto(server.url)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe.Axe().run(page).response["violations"] == []
    assert page.inner_text("#count") == "3 of 3 shown"
    assert "<img src=x onerror=alert(2)> ⟨U+202E⟩gnp" in page.inner_text("main")
    page.select_option("#f-kind", "damaged")
    assert page.inner_text("#count") == "1 of 3 shown"
    page.select_option("#f-kind", "")
    page.select_option("#f-verdict", "pass")
    assert page.inner_text("#count") == "1 of 3 shown"
    page.select_option("#f-verdict", "")
    page.fill("#f-text", "ALERT task")
    assert page.inner_text("#count") == "1 of 3 shown"
    page.click(".results a:visible >> nth=0")
    assert page.title().startswith("task: old → new")
    assert page.evaluate("origin") == "null"
    page.click("#theme")
    for context in list(browser.contexts):
        context.close()
    assert problems == []
    assert all(url.startswith(server.url) or url.startswith("data:") for url in requests)
