"""pocket serve-web: a web bundle on this machine, or on the local network.

    pocket serve-web out/site                                   # http://localhost:8000, this machine alone
    pocket serve-web out/site --lan --cert cert.pem --key key.pem

On another device the page needs HTTPS: browsers give threads, hashes and service workers to secure origins
only, and http on a network address is none. A self-signed certificate does:
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=pocket -keyout key.pem -out cert.pem
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Args:
    folder: Annotated[Path, tyro.conf.Positional]
    """A bundle made with pocket export --target web."""
    port: int = 8000
    """0: any free one."""
    lan: bool = False
    """Listen on every network interface; needs --cert and --key."""
    cert: Path | None = None
    """Certificate (PEM)."""
    key: Path | None = None
    """Its private key (PEM)."""


class Handler(SimpleHTTPRequestHandler):
    """Files of one folder, with the headers that give WASM its threads; no listings."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> Any:
        self.send_error(404, "File not found")

    def send_head(self) -> Any:
        root, wanted = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
        # a link that leads out of the folder is as good as ".."
        if wanted != root and root not in wanted.parents:
            self.send_error(404, "File not found")
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def server(args: Args) -> ThreadingHTTPServer:
    """Bound and ready to serve_forever. ValueError for a folder or flags that cannot be served."""
    from ..runtime.manifest import read

    read(args.folder, ("web",))
    if args.lan and not (args.cert and args.key):
        raise ValueError("--lan needs --cert and --key: elsewhere threads and offline use need HTTPS")
    if bool(args.cert) != bool(args.key):
        raise ValueError("--cert and --key: give both")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port {args.port}: expected 0 to 65535")
    host = "0.0.0.0" if args.lan else "127.0.0.1"
    made = ThreadingHTTPServer((host, args.port), partial(Handler, directory=str(args.folder)))
    if args.cert and args.key:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(args.cert, args.key)
        except (OSError, ssl.SSLError) as error:
            made.server_close()
            raise ValueError(f"{args.cert}, {args.key}: not a certificate and its key ({error})") from None
        made.socket = context.wrap_socket(made.socket, server_side=True)
    return made


def address(args: Args, port: int) -> str:
    scheme = "https" if args.cert else "http"
    if not args.lan:
        return f"{scheme}://localhost:{port}/"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # no packet is sent: this only asks which interface would be used
            probe.connect(("192.0.2.1", 9))
            return f"{scheme}://{probe.getsockname()[0]}:{port}/"
        except OSError:
            return f"{scheme}://{socket.gethostname()}:{port}/"


def main(args: Args) -> None:
    with server(args) as made:
        print(f"{address(args, made.server_address[1])}  (Ctrl-C ends it)", flush=True)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
