"""A folder of results in the browser: a list, and the reports it leads to. For this machine only.

The server listens on the loopback address, answers GET and HEAD to requests that name this machine in their Host
header (so that no foreign name can be pointed here), and serves nothing but the list and the report files of folders
in it. Addresses name folders by hash, so there is no path that could lead elsewhere.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import threading
from collections import OrderedDict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uphold.core.errors import DataError, UpholdError, UsageError
from uphold.measure.rates import format_value
from uphold.report.listing import REPORTS, VERDICTS, Entry, Listing, UnreadableError, read_regular
from uphold.report.page import Page, page_policy, render_page
from uphold.report.text import clip, visible

ADDRESS = "127.0.0.1"
_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_MOST_BYTES = 512 * 2**20
_KEPT_PAGES = 4
_NAME_LIMIT = 120
_HOST = re.compile(r"(\[[0-9a-f:]+\]|[^:]+)(:[0-9]{1,5})?", re.IGNORECASE)
_PATH = re.compile(r"/e/([0-9a-f]{16})/([a-z.]+)")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".json": "application/json; charset=utf-8",
}
# A report brings its own policy with the hash of its script. On top, whatever lies in the folder under that name gets
# an origin of its own, so that it can read neither the list nor another report.
_REPORT_POLICY = f"{page_policy(chr(39) + 'unsafe-inline' + chr(39))}; frame-ancestors 'none'; sandbox allow-scripts"


class ReportServer(ThreadingHTTPServer):
    """Serves one folder; `serve_forever` and `shutdown` are those of the standard library."""

    daemon_threads = True
    # On Windows this option would let two servers share a port.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, folder: Path, port: int) -> None:
        self.listing = Listing(folder)
        self.pages = _Pages()
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        """Where the list is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for what went wrong; a browser that hangs up is no event."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"uphold: a request failed: {visible(repr(error))}", file=sys.stderr, flush=True)


def report_server(folder: str | Path, port: int = 8321) -> ReportServer:
    """A server for the results below `folder`, bound but not yet serving.

    Args:
        folder: is only read.
        port: 0 for any free one.

    Raises:
        DataError: `folder` is none.
        UsageError: the port is taken or not allowed.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path} is no folder: name one that holds comparisons, repairs or histories")
    try:
        return ReportServer(path, port)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {ADDRESS}:{port} ({error.strerror}): choose another --port; 0 takes a free one"
        ) from error


def serve_until_stopped(server: ReportServer) -> None:
    """Serve until the process is interrupted (Ctrl-C) or asked to end, and return then; call it in the main thread."""
    stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda _number, _frame: stopped.set()) for number in signals]
    worker = threading.Thread(target=server.serve_forever, daemon=True)
    worker.start()
    try:
        # Without a timeout, Windows would not look at signals while it waits.
        while not stopped.wait(1.0):
            pass
    finally:
        server.shutdown()
        worker.join()
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _host_name(host: str) -> str:
    match = _HOST.fullmatch(host.strip())
    return match[1].lower() if match else ""


class _Pages:
    """Reports made in memory for folders that hold none: the last few, each made once."""

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def report(self, folder: Path, name: str) -> bytes:
        """The file `name` of a report on `folder`, which is left as it is.

        Raises:
            UpholdError: what the folder holds cannot be reported on.
        """
        from uphold.report.write import write_report

        stamp = (folder / name, (folder / "comparison.json").stat().st_mtime_ns)
        with self._lock:
            if stamp not in self._pages:
                with tempfile.TemporaryDirectory(prefix="uphold-") as made:
                    write_report(folder, made)
                    self._pages[stamp] = (Path(made) / name).read_bytes()
                while len(self._pages) > _KEPT_PAGES:
                    self._pages.popitem(last=False)
            self._pages.move_to_end(stamp)
            return self._pages[stamp]


def render_index(listing: Listing) -> Page:
    """The list of what `listing` finds."""
    found = listing.look()
    return render_page(
        "index.html.j2",
        ["index.css"],
        ["index.js"],
        None,
        found=found,
        root=listing.root.name or str(listing.root),
        rows=[_row(entry) for entry in found.entries],
        verdicts=[verdict for verdict in VERDICTS if any(entry.verdict == verdict for entry in found.entries)],
        kinds=sorted({"damaged" if entry.problem else entry.kind for entry in found.entries}),
    )


def _row(entry: Entry) -> dict[str, Any]:
    """An entry as the list prints it."""
    unit = "score" if entry.continuous else "share"
    scores = entry.scores or (None, None)
    change = None
    if scores[0] is not None and scores[1] is not None:
        difference = scores[1] - scores[0]
        change = f"{difference:+.3f}" if entry.continuous else f"{100 * difference:+.2f} points"
    main = "history.html" if entry.kind == "history" else "report.html"
    stems = ("history",) if entry.kind == "history" else ("report", "search")
    made = [name for name in entry.files if name != main and name.startswith(stems)]
    return {
        "entry": entry,
        "kind": "damaged" if entry.problem else entry.kind,
        "task": clip(entry.task, _NAME_LIMIT),
        "old": clip(entry.old, _NAME_LIMIT),
        "new": clip(entry.new, _NAME_LIMIT),
        "scores": [format_value(score, unit) for score in scores if score is not None],
        "change": None if change is None else change.replace("-", "−"),
        "worse": change is not None and change.startswith("-"),
        "nfr": None if entry.nfr is None else format_value(entry.nfr, "share"),
        "nfr_after": None if entry.nfr_after is None else format_value(entry.nfr_after, "share"),
        "link": main if not entry.problem and (entry.kind != "history" or main in entry.files) else None,
        "others": [] if entry.problem else made,
    }


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    timeout = 30

    def parse_request(self) -> bool:
        """Refuse what is not asked of this machine, or asks for more than reading."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return False
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or _host_name(hosts[0]) not in _NAMES:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return False
        return True

    def do_GET(self) -> None:
        """Answer with the list, a report, or an error."""
        path = urlsplit(self.path).path
        if path == "/":
            page = render_index(self.server.listing)
            policy = f"{page.policy}; frame-ancestors 'none'"
            self._answer(HTTPStatus.OK, _TYPES[".html"], page.html.encode(), policy)
        elif (match := _PATH.fullmatch(path)) and match[2] in REPORTS:
            self._report(match[1], match[2])
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        """Answer as `do_GET` would, without the content."""
        self.do_GET()

    def _report(self, key: str, name: str) -> None:
        folder = self.server.listing.folder(key)
        if folder is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = self._content(folder, name)
        except (UnreadableError, UpholdError) as error:
            self._refuse(HTTPStatus.NOT_FOUND, visible(error))
            return
        policy = _REPORT_POLICY if name.endswith(".html") else "default-src 'none'; sandbox"
        self._answer(HTTPStatus.OK, _TYPES[Path(name).suffix], content, policy)

    def _content(self, folder: Path, name: str) -> bytes:
        path = folder / name
        self._inside(path)
        if path.is_symlink() or path.exists():
            return read_regular(path, _MOST_BYTES)
        if name.startswith("report.") and (folder / "comparison.json").is_file():
            for source in (*folder.glob("*.json"), *folder.glob("runs/*"), *folder.glob("runs/*/*")):
                self._inside(source)
            return self.server.pages.report(folder, name)
        raise UnreadableError(f"there is no {name} in this folder")

    def _inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.server.listing.root):
            raise UnreadableError(f"{path.name} lies outside the served folder, where nothing is read")

    def _answer(self, status: HTTPStatus, kind: str, content: bytes, policy: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer(status, _TYPES[".md"], f"{message}\n".encode(), "default-src 'none'; sandbox")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error as plain text, which repeats nothing of the request."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._refuse(status, f"{status.value} {status.phrase}")

    def version_string(self) -> str:
        """What the Server header says."""
        return "uphold"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the terminal shows the address, and what goes wrong in us."""
