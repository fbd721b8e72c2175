"""`pixio app`: load runs and serve the page, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError, visible
from pixio_lightning.files import expanded
from pixio_lightning.models.weights.shipped import SHIPPED

_MOST_UPLOAD = "512mb"
# What a page of ours may load: its own files, and pictures it makes itself. A browser then asks no
# other machine for anything, whatever a library's page says.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; frame-ancestors 'self'"
)


def main(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Open a page in the browser that shows what runs make of your own pictures."""
    add_arguments(parser)
    options = parser.parse_args(argv)
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'pixio-lightning[app]'")
    folder = Path(options.folder) if options.folder else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--folder '{folder}' is no folder")
    loaded = opened(options.runs)
    with served(loaded, host=options.host, port=options.port, folder=folder) as address:
        if not _is_loopback(options.host):
            print(
                f"whoever reaches this machine at {options.host} can use the page: there is no "
                "password"
            )
        print(f"{address} (Ctrl-C ends it)", flush=True)
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        try:
            stopped.wait()
        except KeyboardInterrupt:
            print("\nended", flush=True)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    about = "run folders, checkpoints, exported encoders, or tiny; default: the newest below runs/"
    parser.add_argument("runs", nargs="*", type=expanded, metavar="RUN", help=about)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="%(default)s; 0 takes a free one")
    about = "pictures among which the page looks for the nearest; it reads no other folder"
    parser.add_argument("--folder", type=expanded, help=about)


def opened(given: Sequence[str]) -> list[Any]:
    """Load the runs that are named, or the newest ones, of which any may be unusable; or `tiny`."""
    from pixio_lightning.cli.app.loaded import newest, open_run, open_shipped

    found, problem = [], ""
    chosen = given or [str(folder) for folder in newest(Path("runs"))]
    if not chosen:
        chosen = list(SHIPPED)
        print("no run with a checkpoint below runs/: this is what the package brings", flush=True)
    for path in chosen:
        try:
            found.append(open_shipped(path) if path in SHIPPED else open_run(Path(path)))
            print(visible(f"loaded {path}"), flush=True)
        except UserError as error:
            if given:
                raise
            problem = str(error)
            print(visible(f"left out {path}: {problem}"), flush=True)
    if not found:
        raise UserError(f"no run below runs/ can be loaded: {problem}")
    return found


@contextmanager
def served(
    loaded: Sequence[Any], *, host: str, port: int, folder: Path | None = None
) -> Iterator[str]:
    """Serve the page while the block runs.

    Args:
        loaded: What it shows.
        host: Address to listen on.
        port: 0 for a free one.
        folder: Of pictures among which neighbours are looked for.

    Yields:
        The page's address.

    Raises:
        UserError: The address cannot be listened on.
    """
    work = Path(tempfile.mkdtemp(prefix="pixio-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(work / "served")  # uploads, and copies of results
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = None
    try:
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from pixio_lightning.cli.app.page import CSS, SCRIPT, THEME, build

        page = build(loaded, work, folder=folder)
        layers = [Middleware(_Policy)]
        if _is_loopback(host):
            # Another page could give its own name this machine's address, and read what is here.
            names = ["localhost", "127.0.0.1", "[::1]", host]
            layers.append(Middleware(TrustedHostMiddleware, allowed_hosts=names))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or _free_port(host),
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                max_file_size=_MOST_UPLOAD,
                allowed_paths=[],
                footer_links=[],
                enable_monitoring=False,  # whoever asked would print a line on the terminal
                theme=THEME,
                css=CSS,
                js=SCRIPT,
                app_kwargs={"middleware": layers},
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {error}; give another --port, or 0 for any"
            ) from None
        yield address
    finally:
        try:
            if page is not None:
                page.close(verbose=False)
        finally:  # a second Ctrl-C shall not leave what users have sent
            shutil.rmtree(work, ignore_errors=True)


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Policy:
    """Adds to every answer what a browser may load beside it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, answer)
