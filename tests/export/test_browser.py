"""A web bundle in Chromium: draws what the native runtime draws, offline too; refuses what is changed."""

import importlib.util
import json
import shutil
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from pocketdiffusion.cli import serve_web
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.runtime.bundle import Bundle

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow
if not (CHROMIUM and shutil.which("npm") and importlib.util.find_spec("playwright")):
    pytest.skip("needs chromium, npm and playwright", allow_module_level=True)

PIXELS = (
    "() => Array.from(document.getElementById('canvas').getContext('2d').getImageData(0, 0, 32, 32).data)"
)


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """The tiny pipeline for the browser, and natively."""
    root = tmp_path_factory.mktemp("web")
    for target in ("web", "onnx"):
        assert guarded(["export", str(tiny_folder), "--target", target, "-o", str(root / target)]) == 0
    return root / "web", root / "onnx"


@pytest.fixture
def served():
    """Serve a folder; the address, and a switch that ends it."""
    running = []

    def start(folder):
        made = serve_web.server(serve_web.Args(folder, port=0))
        threading.Thread(target=made.serve_forever, daemon=True).start()
        running.append(made)
        return f"http://localhost:{made.server_address[1]}/"

    def stop():
        while running:
            made = running.pop()
            made.shutdown()
            made.server_close()

    start.stop = stop
    yield start
    stop()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(context, address):
    """The page once it is ready, with what it says of itself."""
    tab = context.new_page()
    tab.goto(address)
    tab.wait_for_function("document.body.dataset.ready", timeout=60_000)
    return tab, json.loads(tab.evaluate("document.body.dataset.ready"))


def drawn(tab, prompt, seed):
    tab.evaluate("delete document.body.dataset.done")
    tab.fill("#prompt", prompt)
    tab.fill("#seed", str(seed))
    tab.click("#go")
    tab.wait_for_function("document.body.dataset.done", timeout=60_000)
    return np.array(tab.evaluate(PIXELS), np.uint8).reshape(32, 32, 4)


def test_the_page_draws_what_the_native_runtime_draws_also_offline(folders, served, chromium):
    context = chromium.new_context()
    tab, about = opened(context, served(folders[0]))
    assert about["provider"] == "wasm" and tab.evaluate("crossOriginIsolated")
    native = Bundle.open(folders[1])
    for prompt, seed in (("a red circle", 3), ("two green stars", 2**40)):
        picture = drawn(tab, prompt, seed)
        expected = native.generate([prompt], seed=seed)[0]
        assert np.abs(picture[..., :3].astype(int) - expected).max() <= 1
        assert (picture[..., 3] == 255).all()
    assert tab.get_attribute("#save", "href").startswith("blob:")
    served.stop()
    tab.close()
    tab, _ = opened(context, tab.url)
    assert np.array_equal(drawn(tab, prompt, seed), picture)
    context.close()


def test_threads_come_from_the_service_worker_too(folders, chromium, tmp_path):
    """A host that sends no headers at all."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Plain(SimpleHTTPRequestHandler):
        extensions_map = serve_web.Handler.extensions_map

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(folders[0])))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    context = chromium.new_context()
    try:
        tab, about = opened(context, f"http://localhost:{made.server_address[1]}/")
        assert tab.evaluate("crossOriginIsolated") and about["threads"] >= 1
    finally:
        context.close()
        made.shutdown()
        made.server_close()


@pytest.mark.parametrize("name", ["tokenizer.json", "weights/denoiser.onnx.0"])
def test_changed_files_are_refused(folders, served, chromium, tmp_path, name):
    copy = shutil.copytree(folders[0], tmp_path / "site")
    address = served(copy)
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"\n\n")
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(address)
    tab.wait_for_selector("#status.error", timeout=60_000)
    assert f"{name} does not match the manifest" in tab.inner_text("#status")
    assert tab.is_disabled("#go")
    context.close()


def test_a_phone_sees_the_whole_page(folders, served, chromium):
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    tab, _ = opened(context, served(folders[0]))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_the_server_gives_files_of_the_folder_and_nothing_else(folders, served, tmp_path):
    copy = shutil.copytree(folders[0], tmp_path / "site")
    (tmp_path / "secret.txt").write_text("secret")
    (copy / "link.txt").symlink_to(tmp_path / "secret.txt")
    address = served(copy)
    with urllib.request.urlopen(address + "app.js") as answer:
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["Content-Type"].startswith("text/javascript")
    for path in ("weights/", "../secret.txt", "%2e%2e/secret.txt", "link.txt", "nothing.js"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + path)
        assert caught.value.code == 404, path


@pytest.mark.parametrize(
    "argv, what",
    [
        (["--lan"], "--lan needs --cert and --key"),
        (["--cert", "x.pem"], "give both"),
        (["--port", "70000"], "--port 70000"),
        (["--cert", "x.pem", "--key", "y.pem"], "not a certificate"),
    ],
)
def test_wrong_wishes(folders, capsys, argv, what):
    assert guarded(["serve-web", str(folders[0]), *argv]) == 2
    assert what in capsys.readouterr().err


def test_other_folders_are_not_served(folders, tmp_path, capsys):
    assert guarded(["serve-web", str(folders[1])]) == 2
    assert "a bundle for onnx" in capsys.readouterr().err
    assert guarded(["serve-web", str(tmp_path)]) == 2
    assert guarded(["generate", "x", "--bundle", str(folders[0])]) == 2
    assert "a bundle for web" in capsys.readouterr().err
