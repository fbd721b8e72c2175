"""`pixio app`: load runs and serve the page, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError, out_of_memory, visible
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
    loaded = opened(options.runs, options.weights)
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
    parser.add_argument("--port", type=_port, default=7860, help="%(default)s; 0 takes a free one")
    about = "pictures among which the page looks for the nearest; it reads no other folder"
    parser.add_argument("--folder", type=expanded, help=about)
    about = (
        "a file, hf:ORG/NAME or timm: weights of a frozen backbone, for runs whose own are not "
        "there, or would have to be fetched; repeatable"
    )
    parser.add_argument(
        "--weights", type=expanded, action="append", default=[], metavar="SOURCE", help=about
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no port: expected 1 to 65535, or 0 for a free one"
        )
    return int(text)


def opened(given: Sequence[str], weights: Sequence[str] = ()) -> list[Any]:
    """Load runs; one for which there is no memory is left out.

    Args:
        given: Run folders, files or `tiny`; none for the newest runs, of which any may be unusable,
            or `tiny` where there are none.
        weights: Of frozen backbones, for runs whose own are not at hand.

    Raises:
        UserError: A run that is named cannot be used, or none can be.
    """
    from pixio_lightning.cli.app.loaded import newest, open_run, open_shipped

    found, problem = [], ""
    chosen = given or [str(folder) for folder in newest(Path("runs"))]
    if not chosen:
        chosen = list(SHIPPED)
        print("no run with a checkpoint below runs/: this is what the package brings", flush=True)
    for path in chosen:
        try:
            found.append(open_shipped(path) if path in SHIPPED else open_run(Path(path), weights))
            print(visible(f"loaded {path}"), flush=True)
        except (UserError, MemoryError, RuntimeError) as error:
            problem = out_of_memory(error)
            if not problem and (given or not isinstance(error, UserError)):
                raise
            problem = problem or str(error)
            print(visible(f"left out {path}: {problem}"), flush=True)
    if not found:
        which = "none of the runs" if given else "no run below runs/"
        raise UserError(f"{which} can be loaded: {problem}")
    taken = {one.module.backbone.weights for one in found if one.module is not None}
    for source in weights:
        if source not in taken:
            print(visible(f"--weights {source}: no run is shown that needs them"), flush=True)
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
    host = host.strip("[]")  # in which an IPv6 address stands in that of a page
    work = Path(tempfile.mkdtemp(prefix="pixio-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(work / "served")  # uploads, and copies of results
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = None
    try:
        port = _bindable(host, port)
        with _without_proxy():
            from starlette.middleware import Middleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from pixio_lightning.cli.app.page import CSS, SCRIPT, THEME, build

            page = build(loaded, work, folder=folder)
            layers = [Middleware(_Policy)]
            name = f"[{host}]" if ":" in host else host
            if _is_loopback(host):
                # Another page could give its own name this machine's address, and read what is
                # here.
                names = ["localhost", "127.0.0.1", "[::1]", name]
                layers.append(Middleware(TrustedHostMiddleware, allowed_hosts=names))
            try:
                _, address, _ = page.launch(
                    server_name=name,
                    server_port=port,
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
                raise _cannot_listen(host, port, error) from None
        yield address
    finally:
        try:
            if page is not None:
                page.close(verbose=False)
        finally:  # a second Ctrl-C shall not leave what users have sent
            shutil.rmtree(work, ignore_errors=True)


def _bindable(host: str, port: int) -> int:
    """Return a port that can be listened on: the one that is asked for, of 0 a free one.

    Raises:
        UserError: There is none, or the host is none of this machine.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            return found.getsockname()[1]
    except (OSError, UnicodeError) as error:  # the second of what can be no name
        raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: Exception) -> UserError:
    return UserError(
        f"cannot listen on {host}, port {port}: {error}; give another --port, or 0 for any, or "
        "another --host"
    )


@contextmanager
def _without_proxy() -> Iterator[None]:
    """Ask no proxy: while Gradio starts, it asks its own address alone, which no proxy reaches."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
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
