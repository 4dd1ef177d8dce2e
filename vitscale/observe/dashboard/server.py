"""The web page's server: files of the page, the numbers of the runs, nothing else; for this machine's browser unless told otherwise."""

import hmac
import ipaddress
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from mimetypes import guess_type
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitscale.errors import ClusterError
from vitscale.observe.dashboard.assets import OWN_SCRIPTS, OWN_SHEETS
from vitscale.observe.dashboard.folder import Runs
from vitscale.observe.dashboard.sweep import sweep_view
from vitscale.observe.dashboard.table import Table
from vitscale.observe.dashboard.view import fingerprint, run_facts, run_view
from vitscale.pages.document import SCRIPTS, SHEETS, as_json, asset, linked
from vitscale.runfolder import METRICS

log = logging.getLogger(__name__)
COOKIE = "vitscale"
ASSETS = {Path(name).name: name for name in (*SHEETS, *OWN_SHEETS, *SCRIPTS, *OWN_SCRIPTS)}
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'")
FIRST_S = 0.8               # of reading, before a page that is asked for is answered with what there is
_PIECE_S = 0.3              # of reading between two such answers
_MOST_ROWS = 8_000_000      # recorded rows held in memory, 220 bytes each; the runs looked at longest ago make room


class _Views:
    """What has been read of the runs that were looked at."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._reading: set[Path] = set()
        self._held: OrderedDict[Path, tuple[Lock, Table]] = OrderedDict()

    def view(self, folder: Path, **wanted: Any) -> dict[str, Any]:
        """run_view() of what the file holds by now."""
        with self._lock:
            lock, table = self._held.setdefault(folder, (Lock(), Table(folder / METRICS)))
            self._held.move_to_end(folder)
            while len(self._held) > 1 and sum(held.rows for _, held in self._held.values()) > _MOST_ROWS:
                self._held.popitem(last=False)
        with lock:          # one reads on, the others wait for what it finds
            if not table.refresh(FIRST_S) and folder not in self._reading:
                self._reading.add(folder)
                Thread(target=self._read_on, args=(folder, lock, table), daemon=True).start()
            return run_view(folder, table, **wanted)

    def _read_on(self, folder: Path, lock: Lock, table: Table) -> None:
        """The rest of a long record, while what is known of it is looked at."""
        done = False
        while not done:
            with lock:
                done = table.refresh(_PIECE_S)
                if done:
                    self._reading.discard(folder)
            time.sleep(0.01)        # so that who waits for the lock gets it


def make_app(runs: Runs, *, hosts: frozenset[str] | None, token: str | None) -> Starlette:
    """`hosts`: what a Host header may say, without the port; None: anything.  `token`: asked for, as ?token=, then as a cookie."""
    tables = _Views()

    def overview(request: Request) -> Response:
        return _json(runs.overview())

    def run(request: Request) -> Response:
        place = runs.find(request.path_params["id"])
        if place is None:
            return PlainTextResponse("there is no such run any more", 404)
        try:
            window = _window(request.query_params)
        except ValueError:
            return PlainTextResponse("start, end and points are numbers", 400)
        metrics = place.path / METRICS
        size = metrics.stat().st_size if metrics.exists() else 0
        line = runs.line(place, runs.jobs())
        tag = f'"{fingerprint(place.path, size)}-{line["state"]}"'
        view = tables.view(place.path, **window)
        if view["read_ratio"] >= 1 and request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        facts = {} if "curves" in request.query_params else run_facts(place.path)
        return _json({"run": line, "now": time.time(), **view, **facts}, tag if view["read_ratio"] >= 1 else None)

    def picture(request: Request) -> Response:
        from vitscale.observe.dashboard.pictures import picture as draw  # OpenCV, only where it is needed

        place = runs.find(request.path_params["id"])
        found = "there is no such run any more" if place is None else draw(place.path, request.path_params["number"])
        if isinstance(found, str):
            return PlainTextResponse(found, 404)
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def sweep(request: Request) -> Response:
        view = sweep_view(runs, request.path_params["id"])
        return PlainTextResponse("there is no such sweep any more", 404) if view is None else _json(view)

    def report(request: Request) -> Response:
        from vitscale.observe.report import render_report

        place = runs.find(request.path_params["id"])
        if place is None:
            return PlainTextResponse("there is no such run any more", 404)
        named = quote(f"{place.name}-report.html")
        return HTMLResponse(render_report(place.path), headers={"Content-Disposition": f"attachment; filename*=UTF-8''{named}"})

    def page(request: Request) -> Response:
        return HTMLResponse(linked("vitscale", OWN_SHEETS, OWN_SCRIPTS))

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            return PlainTextResponse("there is no such file", 404)
        return Response(asset(ASSETS[name]), media_type=guess_type(name)[0], headers={"Cache-Control": "no-cache"})

    return Starlette(
        routes=[Route("/", page), Route("/static/{name}", file), Route("/api/runs", overview), Route("/api/run/{id}", run),
                Route("/api/run/{id}/picture/{number:int}", picture), Route("/api/sweep/{id}", sweep), Route("/report/{id}", report)],
        middleware=[Middleware(_Guard, hosts=hosts, token=token), Middleware(GZipMiddleware, minimum_size=2000, compresslevel=3)])


def _window(query: QueryParams) -> dict[str, Any]:
    """Which part of a run is asked for, and how finely.  Raises ValueError."""
    start, end = (float(query[name]) if name in query else None for name in ("start", "end"))
    return {"axis": "step" if query.get("axis") == "step" else "time", "start": start, "end": end,
            "points": min(max(int(query.get("points", 600)), 50), 4000)}


def _json(value: Any, tag: str | None = None) -> Response:
    headers = {"Cache-Control": "no-cache"} | ({"ETag": tag} if tag else {})
    return Response(as_json(value), media_type="application/json", headers=headers)


class _Guard:
    """Refuses what no page of ours asked for: another Host (a foreign site whose name was pointed here), or one without the token."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, token: str | None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
            await send(message)

        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        host = Headers(scope=scope).get("host", "")
        if self.hosts is not None and _without_port(host) not in self.hosts:
            return PlainTextResponse(f"vitscale monitor answers as {', '.join(sorted(self.hosts))}, not as {host[:200]!r}", 421)
        if self.token is None:
            return None
        request = Request(scope)
        if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.token.encode()):
            return None
        if hmac.compare_digest(request.query_params.get("token", "").encode(), self.token.encode()):
            answer = RedirectResponse("/", 303)        # so that the token does not stay in the address
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("this page asks for a token: open the address that `vitscale monitor` printed", 403)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()


def serve(runs: Path, *, host: str = "127.0.0.1", port: int = 8420, token: str | None = None,
          say: Callable[[str], None] = print) -> None:
    """Serve the page of all runs under a folder until interrupted; `say` is told its address.  port 0: a free one.

    Off loopback a token is asked for; one is made if none is given.  Raises ClusterError for a folder that is not there and an address
    that cannot be had.
    """
    found = Runs(runs)
    listening = _listen(host, port)
    local, token = _is_loopback(host), token_for(host, token)
    everywhere = host in ("0.0.0.0", "::", "")
    names = {host.lower(), *(("localhost", "127.0.0.1", "::1") if local else (socket.gethostname().lower(), socket.getfqdn().lower()))}
    app = make_app(found, hosts=None if everywhere else frozenset(names), token=token)
    shown = f"[{host}]" if ":" in host else socket.gethostname() if everywhere else host
    say(f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={quote(token)}" if token else ""))
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1, lifespan="off")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def token_for(host: str, given: str | None) -> str | None:
    """What is asked for at this address: what was given, else nothing on loopback, else something new."""
    return given or (None if _is_loopback(host) else secrets.token_urlsafe(18))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
            opened.listen(128)
        except OSError:
            opened.close()
            raise
        return opened
    except OSError as error:
        raise ClusterError(f"{host}:{port} cannot be had ({error.strerror or error}); choose another --port, or --port 0 for a free "
                           "one") from None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
