"""Pictures of the page for the docs: `python tests/serving/page_pictures.py OUT KIND=FOLDER …`.

KIND is a tab of the page (fill, answer, classify, tag, span, chat, complete, transform, embed), FOLDER a
model that has it. Each becomes OUT/KIND.png: the page with an example and the model's answer.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from browser import started  # noqa: E402
from live_server import LiveServer  # noqa: E402
from PIL import Image  # noqa: E402

LOOKS = {  # kind -> what the window is like; zh-TW, light and 1080 pixels wide unless it says otherwise
    "answer": {"color_scheme": "dark"}, "embed": {"locale": "en-US"}, "classify": {"locale": "en-US"},
    "tag": {"viewport": {"width": 400, "height": 700}},
}  # fmt: skip
EXAMPLES = {"classify": 3, "tag": 1, "embed": 1}  # which example is shown, where it is not the first
TYPED = {
    "chat": ("message", "武則天是哪一個朝代的人？")
}  # kind -> field, what is typed instead of an example
COLOURS = 64
BOTTOM = """() => { const box = id => document.getElementById(id).getBoundingClientRect();
    const main = box("main"), card = box("card");
    return scrollY + 24 + (card.top < main.bottom ? Math.max(main.bottom, card.bottom) : main.bottom); }"""


def draw(browser, kind: str, folder: Path, out: Path) -> Path:
    """Save the page of a model with an example and its answer. Returns the file."""
    look = {"locale": "zh-TW", "viewport": {"width": 1080, "height": 700}, **LOOKS.get(kind, {})}
    with LiveServer(folder, name=folder.name) as server:
        page = browser.new_context(reduced_motion="reduce", **look).new_page()
        page.goto(server.url)
        page.click(f"#tab-{kind}")
        if kind in TYPED:
            page.fill(f"#{kind}-{TYPED[kind][0]}", TYPED[kind][1])
        else:
            page.click(f"#{kind} .examples button >> nth={EXAMPLES.get(kind, 0)}")
        page.evaluate("for (const one of document.getElementsByName('temperature')) one.value = 0")  # no luck
        page.click(f"#{kind} .run")
        page.wait_for_selector(f"#{kind} .status:not([data-t='status.working']):not(:empty)")
        page.evaluate("document.activeElement.blur()")
        whole = page.evaluate(BOTTOM)
        clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": whole}
        shot = page.screenshot(full_page=True, clip=clip)
        page.context.close()
    path = out / f"{kind}.png"
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return path


if __name__ == "__main__":
    with started() as one_browser:
        for pair in sys.argv[2:]:
            name, _, model = pair.partition("=")
            picture = draw(one_browser, name, Path(model), Path(sys.argv[1]))
            print(picture, picture.stat().st_size)
