"""MLflow's page behind a token: read-only unless asked otherwise, and with artifacts of its own folder alone.

MLflow's server asks nobody who he is. Whoever can reach its port, any user of the machine, could read and delete runs,
and any file of the one who runs it by way of an experiment whose artifacts lie elsewhere. This is a layer around its
application that lets through what belongs to the one who has the token.

    python -m garda.runs.mlflow_page DATABASE ARTIFACTS PORT [--write]       (the token: environment variable TOKEN)
"""

import contextlib
import hmac
import http.cookies
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

HOST, TOKEN = "127.0.0.1", "GARDA_UI_TOKEN"
READS = ("GET", "HEAD", "OPTIONS")
ASKS = (
    "/search",
    "/graphql",
    "/search-datasets",
    "/get-history-bulk-interval",
)  # what is asked by POST and changes nothing
FILES = "/mlflow-artifacts/artifacts"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application that asks for the token before it hands a request on."""

    def __init__(self, app: Application, token: str, port: int, database: Path, *, write: bool = False) -> None:
        """Guard ``app``, whose runs are in ``database`` and whose artifacts lie below the database's folder."""
        self._app, self._token, self._database, self._write = app, token, database, write
        self._hosts = [f"{name}:{port}" for name in (HOST, "localhost")]
        self._cookie = f"garda-{port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or hand on; a web socket is refused."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            if self._fits(asked.get("token", [""])[0]):
                await self._welcome(scope["path"], asked, send)
            elif (status := self._refuse(scope, headers, asked)) is not None:
                await _answer(send, status, [], f"{status.value} {status.phrase}\n")
            else:
                await self._app(scope, receive, send)

    def _fits(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())

    async def _welcome(self, path: str, asked: dict[str, list[str]], send: Send) -> None:
        """Put the token into a cookie, so that it leaves the address."""
        rest = urlencode({name: value for name, value in asked.items() if name != "token"}, doseq=True)
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        to = "/" + path.lstrip("/") + (f"?{rest}" if rest else "")
        headers = [(b"location", to.encode("ascii", "ignore")), (b"set-cookie", cookie.encode())]
        await _answer(send, HTTPStatus.SEE_OTHER, headers, "")

    def _refuse(self, scope: Message, headers: dict[str, str], asked: dict[str, list[str]]) -> HTTPStatus | None:
        """Why a request is not handed on; None where it is."""
        if headers.get("host") not in self._hosts:
            return HTTPStatus.FORBIDDEN
        if "origin" in headers and headers["origin"] not in [f"http://{name}" for name in self._hosts]:
            return HTTPStatus.FORBIDDEN
        cookies = http.cookies.SimpleCookie()
        with contextlib.suppress(http.cookies.CookieError):
            cookies.load(headers.get("cookie", ""))
        held = cookies[self._cookie].value if self._cookie in cookies else ""
        if not self._fits(held) and not self._fits(headers.get("authorization", "").removeprefix("Bearer ")):
            return HTTPStatus.UNAUTHORIZED
        if not self._write and scope["method"] not in READS and not scope["path"].endswith(ASKS):
            return HTTPStatus.FORBIDDEN
        return None if self._inside(scope["path"], asked) else HTTPStatus.FORBIDDEN

    def _inside(self, path: str, asked: dict[str, list[str]]) -> bool:
        """Whether a request for files stays in the folder of the database, links followed."""
        if "artifact" not in path and "path" not in asked:
            return True
        root = self._database.parent.resolve()
        names = [unquote(path.partition(FILES)[2]).lstrip("/"), *asked.get("path", [])]
        runs = [run for name in ("run_id", "run_uuid") for run in asked.get(name, [])]
        places = [folder for run in runs for folder in self._places(run)] or [root / "mlartifacts"]
        return all((place / name).resolve().is_relative_to(root) for place in places for name in names)

    def _places(self, run: str) -> list[Path]:
        """Where a run's artifacts lie, by the database."""
        with contextlib.closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run,)).fetchall()
        return [Path(unquote(urlsplit(uri).path)) for (uri,) in rows]


async def _answer(send: Send, status: HTTPStatus, headers: list[tuple[bytes, bytes]], text: str) -> None:
    plain = [(b"content-type", b"text/plain"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer")]
    await send({"type": "http.response.start", "status": int(status), "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def main(database: Path, artifacts: Path, port: int, write: bool) -> None:
    """Serve until Ctrl-C."""
    import uvicorn
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{database}",
        constants.REGISTRY_STORE_URI_ENV_VAR: f"sqlite:///{database}",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(artifacts),
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    from mlflow.server.fastapi_app import app

    guard = Guard(app, os.environ.pop(TOKEN), port, database, write=write)
    uvicorn.run(guard, host=HOST, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), "--write" in sys.argv[4:])
