"""Write the pictures of the explorer in docs/: `make screenshots`. It needs the extra dev, and chromium."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

PORT = 7979
NURSE = " nurse : a woman who"
WHY = {"tab": "predict", "prompt": NURSE, "token": " cares", "versus": " writes"}
SHOTS = {  # name: width, colours, what the page shows
    "explore_1280": (1280, "light", WHY),
    "explore_400": (400, "light", {"tab": "predict", "prompt": NURSE, "token": " cares"}),
    "explore_senses_1280": (1280, "light", {"tab": "senses", "words": "nurse king"}),
    "explore_steer_1280": (1280, "dark", {"tab": "steer", "prompt": NURSE}),
    "explore_steer_400": (400, "dark", {"tab": "steer", "prompt": NURSE}),
}
HEIGHT = 1400  # of a picture at most

browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
command = [sys.executable, "-m", "nanobackpack", "explore", "--init_from=words-small", "--open=False"]
with (
    subprocess.Popen([*command, f"--port={PORT}"], stdout=subprocess.PIPE, text=True) as server,
    sync_playwright() as driver,
):
    address = server.stdout.readline().split()[0]
    chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
    for name, (width, scheme, query) in SHOTS.items():
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(f"{address}?{urlencode(query)}")
        page.wait_for_selector(f"#view-{query['tab']} .nb", timeout=120_000)
        page.wait_for_timeout(1000)
        file = Path(__file__).with_name(f"{name}.png")
        tall = page.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, HEIGHT)}
        page.screenshot(path=file, full_page=True, clip=clip)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")
        page.close()
    server.terminate()
