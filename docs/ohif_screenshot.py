"""Make the picture docs/ohif.png: a click in the real OHIF, which the server brings, in a headless Chromium.

examples:
  pip install playwright ; apt install chromium
  python docs/ohif_screenshot.py
"""

import argparse
import logging
import sys
from pathlib import Path

import requests
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.serving.launch import start_monailabel, stop, wait_for  # noqa: E402

CHROMIUM_OPTIONS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def annotate(page: Page, address: str, study: str, segment: str, click_xy: tuple[float, float]) -> None:
    """Open a study in OHIF, connect to MONAI Label, select a segment, click on it and press Run.

    Args:
        page: An empty page of the browser.
        address: The address of the MONAI Label server.
        study: The Study Instance UID.
        segment: The name of the segment.
        click_xy: Where to click, as shares of the axial viewport's width and height.
    """
    page.goto(f"{address}/ohif/monai-label?StudyInstanceUIDs={study}")
    page.wait_for_selector("#monailabelServerURL", timeout=120_000)
    page.wait_for_selector("canvas", timeout=120_000)
    page.wait_for_timeout(10_000)  # A slow machine takes long to draw the three planes.
    page.get_by_text("Confirm and Hide").click()
    page.fill("#monailabelServerURL", address + "/")
    page.click(".monaiLabelPanel button.actionButton")
    page.wait_for_selector("label[for=tab-3]")
    page.click("label[for=tab-3]")
    tab = page.locator(".tab", has=page.locator("#tab-3"))
    tab.get_by_text(segment, exact=True).click()
    page.wait_for_timeout(1_000)
    box = page.locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + click_xy[0] * box["width"], box["y"] + click_xy[1] * box["height"])
    page.wait_for_timeout(1_000)
    with page.expect_response(lambda r: "/infer/" in r.url, timeout=180_000) as answer:
        tab.get_by_role("button", name="Run").click()
    logging.info("%s %s", answer.value.status, answer.value.url)
    page.wait_for_timeout(8_000)


def main() -> None:
    """Start the server, make the picture and stop the server."""
    logging.basicConfig(level=logging.INFO)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "ohif.png", help="the picture (default: docs/ohif.png)")
    p.add_argument("--port", type=int, default=8201, help="port of the MONAI Label server (default: %(default)s)")
    p.add_argument("--study", default="ct_phantom", help="name of an image in sample-data/nifti (default: %(default)s)")
    p.add_argument("--segment", default="liver", help="name of the segment (default: %(default)s)")
    p.add_argument("--at", default="0.33,0.47",
                   help="where to click, as shares of the axial viewport's width and height (default: %(default)s)")  # fmt: skip
    a = p.parse_args()
    processes: list = []
    try:
        processes.append(start_monailabel(str(ROOT / "sample-data" / "nifti"), "127.0.0.1", a.port))
        address = f"http://127.0.0.1:{a.port}"
        wait_for(f"{address}/info/", processes[-1])
        study = requests.get(f"{address}/sam2/state", params={"image": a.study}, timeout=30).json()["StudyInstanceUID"]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_OPTIONS)
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            annotate(page, address, study, a.segment, tuple(float(v) for v in a.at.split(",")))
            page.screenshot(path=a.out)
            browser.close()
    finally:
        stop(processes)


if __name__ == "__main__":
    main()
