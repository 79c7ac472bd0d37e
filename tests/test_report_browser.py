"""The HTML report in a real browser: quiet, offline, sortable, and deaf to scripts in run names."""

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from report_runs import make_run, write_result

from tql_offline.eval.published import published_scores
from tql_offline.eval.report import write_report

websockets = pytest.importorskip("websockets", reason="needs the package websockets")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome on the PATH")

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0"),
)
SCRIPT = "<script>document.title='owned'</script>"
HOSTILE = "<script>document.title='owned'<img src=x onerror=document.title='owned'>"


class Page:
    """One tab, driven by the DevTools protocol; every event it sends is kept."""

    def __init__(self, socket):
        self.socket = socket
        self.ids = itertools.count(1)
        self.events = []

    async def call(self, method, **params):
        number = next(self.ids)
        await self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 20))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def evaluate(self, expression):
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def open(self, path):
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.resolve().as_uri())
        for _ in range(100):
            if await self.evaluate("document.readyState === 'complete' && !!document.title"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the page did not load")

    async def look(self, width, scheme, path):
        """Take a picture of the whole page at a width in light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """Everything the console or the log said."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self):
        """Addresses asked for, but those that hold their own data."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]


@asynccontextmanager
async def browser_page(profile):
    """A tab of a browser of its own."""
    flags = (*FLAGS, f"--user-data-dir={profile}", "about:blank")
    with subprocess.Popen([BROWSER, *flags], stderr=subprocess.DEVNULL) as process:
        try:
            port = await _devtools_port(profile / "DevToolsActivePort", process)
            async with websockets.connect(f"ws://127.0.0.1:{port}", max_size=2**26) as browser:
                target = await Page(browser).call("Target.createTarget", url="about:blank")
            tab = f"ws://127.0.0.1:{port.split('/')[0]}/devtools/page/{target['targetId']}"
            async with websockets.connect(tab, max_size=2**26) as socket:
                yield Page(socket)
        finally:
            process.terminate()


async def _devtools_port(path, process):
    """Port and path of the browser's socket, as it writes them down."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        lines = path.read_text().split() if path.is_file() else []
        if len(lines) == 2:
            return "".join(lines)
        await asyncio.sleep(0.05)
    raise AssertionError("the browser did not start")


def drive(profile, path, steps):
    """Open a file in a browser and run the coroutine function `steps` on its page."""

    async def session():
        async with browser_page(profile) as page:
            await page.open(path)
            return await steps(page)

    return asyncio.run(session())


@pytest.fixture
def artefacts(tmp_path):
    folder = Path(os.environ.get("TQL_TEST_ARTEFACTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of three runs, two with a name or a method that tries to run a script."""
    tmp_path = tmp_path_factory.mktemp("report")
    runs = [
        make_run(tmp_path / "runs" / "tiny-s0"),
        make_run(
            tmp_path / "runs" / "large-s0", size="large", successes=(1, 9, 30, 41), method=SCRIPT
        ),
        make_run(tmp_path / "runs" / HOSTILE, size="small", successes=(4, 20), finished=False),
    ]
    with runs[2].metrics.open("a") as file:
        file.write(json.dumps({"step": 20_000, f'"{HOSTILE}{SCRIPT}_loss': 1.0}) + f"\n{HOSTILE}")
    return write_report(runs, tmp_path / "report").html


COLUMN = """[...[...document.querySelectorAll("table.sortable")].at(-1).tBodies[0].rows]
  .map((row) => row.cells[2].textContent.split("/")[0])"""
HEADER = '[...document.querySelectorAll("table.sortable")].at(-1).tHead.rows[0].cells[2]'


def test_report_is_quiet_offline_sortable_and_runs_no_foreign_script(report, tmp_path, artefacts):
    async def steps(page):
        await page.look(1600, "light", artefacts / "report-1600-light.png")
        await page.look(1600, "dark", artefacts / "report-1600-dark.png")
        await page.look(400, "light", artefacts / "report-400-light.png")
        page.overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        page.title = await page.evaluate("document.title")
        page.text = await page.evaluate("document.querySelector('main').textContent")
        page.before = await page.evaluate(COLUMN)
        # The keyboard reaches the button: focus it and press Enter.
        await page.evaluate(f"{HEADER}.querySelector('button').focus()")
        for kind in ("keyDown", "keyUp"):
            await page.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                text="\r",
                windowsVirtualKeyCode=13,
            )
        page.ascending = await page.evaluate(COLUMN)
        page.sorted_as = await page.evaluate(f"{HEADER}.getAttribute('aria-sort')")
        await page.evaluate(f"{HEADER}.querySelector('button').click()")
        page.descending = await page.evaluate(COLUMN)
        return page

    page = drive(tmp_path / "profile", report, steps)
    assert page.complaints() == []
    assert page.requests() == [report.resolve().as_uri()]
    assert page.title == "3 runs · tql-offline report"
    assert HOSTILE in page.text
    assert SCRIPT in page.text
    assert page.before == ["49", "0", "41", "0", "20", "0"]
    assert page.ascending == ["0", "0", "0", "20", "41", "49"]
    assert page.sorted_as == "ascending"
    assert page.descending == ["49", "41", "20", "0", "0", "0"]
    assert page.overflow == 0
    assert all(path.stat().st_size > 20_000 for path in artefacts.glob("report-*.png"))


def test_even_an_unescaped_script_does_not_run(report, tmp_path):
    html = report.read_text(encoding="utf-8")
    foreign = (
        "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    )
    page = tmp_path / "report.html"
    page.write_text(html.replace("<h1>", f"{foreign}<h1>", 1), encoding="utf-8")

    async def steps(page):
        return await page.evaluate("document.title"), page.complaints()

    title, complaints = drive(tmp_path / "profile", page, steps)
    assert title == "3 runs · tql-offline report"
    assert re.search("Content Security Policy", json.dumps(complaints))


@pytest.fixture
def leaderboard(tmp_path):
    """A thousand results: 25 tasks, 5 methods (one with a script for a name), 8 seeds."""
    paths = [
        write_result(
            tmp_path / "others" / f"{task}-{method}-{seed}-result.json",
            task=task, method=name, seed=seed, successes=((7 * n + 3 * method + seed) % 50,) * 3,
        )
        for n, task in enumerate(dict.fromkeys(row.task for row in published_scores()))
        for method, name in enumerate(("TQL", "FQL", "IQL", "CQL", SCRIPT))
        for seed in range(8)
    ]  # fmt: skip
    return write_report([], tmp_path / "report", merged=paths).html


SCORES = 'document.querySelectorAll("table.sortable")[0]'
VISIBLE = (
    f"[...{SCORES}.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)"
)


def test_a_thousand_results_render_fast_and_filter(leaderboard, tmp_path, artefacts):
    async def steps(page):
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        page.milliseconds = await page.evaluate(timing)
        await page.look(1600, "light", artefacts / "leaderboard-1600-light.png")
        await page.look(1600, "dark", artefacts / "leaderboard-1600-dark.png")
        await page.look(400, "light", artefacts / "leaderboard-400-light.png")
        page.overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        # Scrolled sideways by the keyboard, the first column stays.
        await page.evaluate("document.querySelector('.scroll').focus()")
        for kind in ("keyDown", "keyUp"):
            await page.call(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", windowsVirtualKeyCode=39
            )
        await asyncio.sleep(0.5)  # it scrolls smoothly
        page.scrolled = await page.evaluate("document.querySelector('.scroll').scrollLeft")
        page.first_column = await page.evaluate(
            f"{SCORES}.tBodies[0].rows[0].cells[0].getBoundingClientRect().left"
            f" - {SCORES}.parentElement.getBoundingClientRect().left"
        )
        page.every = await page.evaluate(VISIBLE)
        page.bold = await page.evaluate(f"{SCORES}.querySelectorAll('b').length")
        await page.evaluate("document.querySelector('.filter input').focus()")
        await page.call("Input.insertText", text="CUBE-double")
        page.filtered = await page.evaluate(VISIBLE)
        await page.evaluate(f"{SCORES}.tHead.rows[0].cells[0].querySelector('button').click()")
        await page.evaluate(f"{SCORES}.tHead.rows[0].cells[0].querySelector('button').click()")
        page.descending = await page.evaluate(VISIBLE)
        page.title = await page.evaluate("document.title")
        return page

    page = drive(tmp_path / "profile", leaderboard, steps)
    assert page.complaints() == []
    assert page.title == "Leaderboard · tql-offline report"
    assert 0 < page.milliseconds < 2000
    assert page.overflow == 0
    assert page.scrolled > 0
    assert page.first_column == 0
    assert len(page.every) == 25
    assert page.bold >= 25
    assert page.filtered == [name for name in page.every if "cube-double" in name]
    assert len(page.filtered) == 5
    assert page.descending == page.filtered[::-1]
