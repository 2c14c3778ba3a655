"""The page at / and /docs in a real browser: every kind of model, both languages, links, keyboard, errors."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from browser import started
from encoder_decoders import make as make_seq2seq
from live_server import LiveServer
from starlette.responses import StreamingResponse
from starlette.routing import Route
from test_classifier import make_head
from test_tagger import make_tagger

import finetune.serving
from finetune.models.run_card import RunCard
from finetune.serving.openapi import ZH_SUMMARY
from finetune.serving.schemas import ZH

pytestmark = pytest.mark.slow
FOLDER = Path(finetune.serving.__file__).parent
HAN = re.compile(r"[\u3400-\u9fff]")
EVIL = '<img src=x onerror="document.title=1">"\'&'  # what would run, were it HTML
PARTS = {  # kind of model -> its tabs, and what a person fills in: field -> value
    "masked": {"fill": {"prompt": "天[MASK]玄[MASK]"}, "answer": {"question": "天地玄黃？"}},
    "choice": {"answer": {"question": "天地玄黃？"}},
    "multi": {"classify": {"text": "天地玄黃"}, "embed": {"texts": "天地\n玄黃"}},
    "tagger": {"tag": {"text": "天😀地玄黃宇宙"}},
    "extractor": {"span": {"question": "天地", "context": "日月盈昃😀辰宿列張"}},
    "chat": {"chat": {"message": "天地"}, "complete": {"prompt": "天地"}, "answer": {"question": "天？"}},
    "seq2seq": {"transform": {"prompt": "天地"}},
}  # fmt: skip
CONTRAST = ["color-contrast"]
OPTIONS = ["玄黃", "宇宙", "洪荒"]


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


async def scripted(request):
    """A stream in OpenAI's form, as the last text asks: `break` ends it early, `fail` has an error, `wait`
    goes on for a minute."""
    body = await request.json()
    chat = "messages" in body
    text = body["messages"][-1]["content"] if chat else body["prompt"]

    async def events():
        for piece in ("玄", "黃", EVIL):
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            yield f"data: {json.dumps({'choices': [{'index': 0, **choice, 'finish_reason': None}]})}\n\n"
        if text == "wait":
            await asyncio.sleep(60)
        if text == "fail":
            yield f"data: {json.dumps({'error': {'message': '壞了', 'code': 500}})}\n\n"
        if text not in ("break", "fail"):
            yield 'data: {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]}\n\n'
            yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def servers(tmp_path_factory, spread_model_dir, model_dir, qwen_dir):
    """A server of each kind, started when it is first asked for."""
    home, started_ones = tmp_path_factory.mktemp("kinds"), {}
    card = RunCard(task="classify", scoring="", base_model=EVIL.replace("/", ""), dataset=EVIL, max_length=48)

    def seq2seq(folder):
        model, tokenizer = make_seq2seq("bart")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    makers = {
        "masked": lambda folder: spread_model_dir,
        "keyed": lambda folder: spread_model_dir,
        "choice": lambda folder: make_head(folder, model_dir, "AutoModelForMultipleChoice"),
        "multi": lambda folder: make_head(
            folder,
            model_dir,
            "AutoModelForSequenceClassification",
            multi=True,
            names=(EVIL, "乙", "丙"),
            card=card,
        ),
        "tagger": lambda folder: make_tagger(folder, model_dir),
        "extractor": lambda folder: make_head(folder, model_dir, "AutoModelForQuestionAnswering"),
        "chat": lambda folder: qwen_dir,
        "scripted": lambda folder: qwen_dir,
        "seq2seq": seq2seq,
    }

    class Servers(dict):
        def __missing__(self, kind):
            keys = ("right-key",) if kind == "keyed" else ()
            server = LiveServer(makers[kind](home / kind), name=f"{kind} {EVIL}", api_keys=keys)
            for path in ("/v1/chat/completions", "/v1/completions") if kind == "scripted" else ():
                server.server.config.app.router.routes.insert(0, Route(path, scripted, methods=["POST"]))
            self[kind] = started_ones[kind] = server.__enter__()
            return server

    yield Servers()
    for server in started_ones.values():
        server.__exit__()


@contextmanager
def opened(browser, url, locale="zh-TW", width=1100, scheme="light", noise=()):
    """A page in a fresh window. What goes wrong in it, and whatever it asks of others, fails the test.

    Args:
        noise: what the console may say.
    """
    troubles = []
    context = browser.new_context(
        locale=locale, viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: any(n in message.text for n in noise) or troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    host = "/".join(url.split("/")[:3])
    page.on("request", lambda one: one.url.startswith((host, "data:")) or troubles.append(one.url))
    page.goto(url)
    page.wait_for_selector("[role=tab], .error:not(:empty), dialog[open], .zh")
    try:
        yield page
    finally:
        context.close()
    assert not troubles


def fill_in(page, tab: str, entry: dict) -> None:
    page.click(f"#tab-{tab}")
    for name, value in entry.items():
        page.fill(f"#{tab} [name={name}]", value)
    if tab == "answer":
        page.click("#answer .option button >> nth=-1")
        for place, text in enumerate(OPTIONS):
            page.fill(f"#options input >> nth={place}", text)


def done(page, tab: str) -> None:
    page.click(f"#{tab} .run")
    page.wait_for_selector(
        f"#{tab} .status:is([data-t='status.done'],[data-t='status.length'],[data-t='status.first'])"
    )


def chinese_left(page) -> list[str]:
    """Texts on the screen with Chinese in them that are no data: those an English page must not have."""
    return page.evaluate(
        r"""() => { const found = [];
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) { const node = walk.currentNode, above = node.parentElement;
            const data = above.closest("[translate=no],[lang^=zh],script,noscript,textarea");
            if (/[\u3400-\u9fff]/.test(node.data) && !data) found.push(node.data); }
        for (const node of document.querySelectorAll("[aria-label]"))
            if (/[\u3400-\u9fff]/.test(node.ariaLabel) && node.dataset.tLabel != "fill.put")
                found.push(node.ariaLabel);
        return found; }"""
    )


def assert_accessible(page, rules=None, part=None) -> None:
    """axe finds nothing serious or critical. What the other scheme changes is the contrast alone."""
    found = Axe().run(page, part, {"runOnly": rules} if rules else None)["violations"]
    serious = [
        (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in found if one["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert not serious


def test_nothing_seen_is_missing_in_a_language_and_no_word_is_idle():
    words, page, script = (
        (FOLDER / name).read_text(encoding="utf-8")
        for name in ("page_words.html", "page.html", "page_script.html")
    )
    quoted = r'("(?:[^"\\]|\\.)*")'
    found = re.findall(rf'^  "([\w.]+)": \[{quoted},\s*{quoted}\],$', words, re.M)
    pairs = {key: (json.loads(chinese), json.loads(english)) for key, chinese, english in found}
    assert len(pairs) == words.count('": [') > 100
    for key, (chinese, english) in pairs.items():
        assert chinese and english and (key == "language" or not HAN.search(english)), key
        assert HAN.search(chinese) or chinese == english or key == "language", key
        assert set(re.findall(r"\{\w+\}", chinese)) == set(re.findall(r"\{\w+\}", english)), key
    used = {
        *re.findall(r'data-t(?:-label)?="([\w.]+)"', page),
        *re.findall(r'"([a-z]\w*\.[\w.]*\w|[a-z]+)"', script),
    }
    groups = {key.split(".")[0] for key in pairs}
    assert {key for key in used if "." in key and key.split(".")[0] in groups} - {"chat.completions"} <= {
        *pairs
    }
    made = re.compile(r"(kind|task|set|metric|chat)\.|\w+\.(tab|run)$|language")  # put together by the script
    assert {key for key in pairs if not made.match(key)} <= used


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_answers_in_both_languages_schemes_and_widths(browser, servers, kind):
    with opened(browser, servers[kind].url) as page:
        assert page.inner_text("h1") == f"{kind} {EVIL}" == page.title()
        assert page.locator("[role=tab]").count() >= len(PARTS[kind])
        for tab, entry in PARTS[kind].items():
            fill_in(page, tab, entry)
            done(page, tab)
            page.click(f"#{tab} .code summary")
            page.click(f"#{tab} .share")
            assert HAN.search(page.inner_text(f"#{tab} .status"))
        tab = next(iter(PARTS[kind]))
        page.click(f"#tab-{tab}")
        assert_accessible(page)
        page.click("#language")
        page.select_option("#scheme", "dark")
        assert not chinese_left(page)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
        assert_accessible(page, CONTRAST)
        page.set_viewport_size({"width": 360, "height": 800})
        for tab in PARTS[kind]:
            page.click(f"#tab-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
        assert not page.locator("img").count()
        page.reload()  # both choices are kept
        page.wait_for_selector("[role=tab]")
        assert page.evaluate("[document.documentElement.lang, document.documentElement.dataset.scheme]") == [
            "en",
            "dark",
        ]


def test_what_is_shown_is_what_the_api_answers(browser, servers):
    with opened(browser, servers["masked"].url, "en-US") as page:
        _, record = servers["masked"].request("/v1/fill", {"prompt": "天[MASK]玄黃"})
        fill_in(page, "fill", {"prompt": "天[MASK]玄黃"})
        done(page, "fill")
        assert page.locator("#fill .bars .name").all_inner_texts() == [
            one["word"] for one in record["predictions"]
        ]
        assert [float(text.strip("< %")) for text in page.locator("#fill .value").all_inner_texts()] == [
            pytest.approx(100 * one["probability"], abs=0.06) for one in record["predictions"]
        ]
        body = {"question": "天地玄黃？", "options": dict(zip("ABC", OPTIONS, strict=True)), "orders": "1"}
        _, record = servers["masked"].request("/v1/answer", body)
        fill_in(page, "answer", {"question": "天地玄黃？"})
        page.click("#answer summary >> nth=0")
        page.select_option("#answer-orders", "1")
        done(page, "answer")
        ranked = [f"{label}. {body['options'][label]}" for label in record["scores"]]
        assert page.locator("#answer .bars .name").all_inner_texts() == ranked
        assert ranked[0] in page.inner_text("#answer .verdict")
    with opened(browser, servers["tagger"].url) as page:
        text = PARTS["tagger"]["tag"]["text"]
        _, record = servers["tagger"].request("/v1/tag", {"text": text})
        assert any(one["start"] > 2 for one in record["entities"])  # behind the emoji, two units of UTF-16
        fill_in(page, "tag", {"text": text})
        done(page, "tag")
        marks = [
            text.split("\n")[0]
            for text in page.locator(".passage mark").evaluate_all("all => all.map(m => m.firstChild.data)")
        ]
        assert marks == [one["text"] for one in record["entities"]]
    with opened(browser, servers["extractor"].url) as page:
        _, record = servers["extractor"].request("/v1/span", {**PARTS["extractor"]["span"], "top_k": 3})
        fill_in(page, "span", PARTS["extractor"]["span"])
        done(page, "span")
        for place, one in enumerate(record["answers"]):
            page.click(f"#span .bars button >> nth={place}")
            assert page.locator(".passage mark").all_inner_texts() == [one["answer"]] * (
                one["start"] is not None
            )


def test_a_link_brings_an_entry_back_and_nothing_of_it_is_sent_before_the_button_is_pressed(browser, servers):
    asked = []
    with opened(browser, servers["masked"].url) as page:
        fill_in(page, "answer", {"question": f"天地＆=#？\n{EVIL}"})
        page.click("#answer summary >> nth=0")
        page.select_option("#answer-scoring", "pll")
        page.click("#answer .share")
        link = page.input_value("#answer .link input")
        page.fill("#answer-question", "天" * 5000)
        page.click("#answer .share")
        assert page.locator("#answer .link input").is_hidden() and "32,000" in page.inner_text(
            "#answer .link"
        )
    with opened(browser, servers["masked"].url + "/#nothing=1") as page:
        page.on("request", lambda one: asked.append(one.url))
        page.goto(link)  # the same page: only what stands after the # changes
        page.wait_for_selector("#answer:not([hidden])")
        assert page.input_value("#answer-question") == f"天地＆=#？\n{EVIL}"
        assert page.locator("#options input").evaluate_all("all => all.map(one => one.value)") == OPTIONS
        assert page.input_value("#answer-scoring") == "pll" and not asked
        done(page, "answer")
        assert [url.rsplit("/", 1)[-1] for url in asked] == ["answer"]
    with opened(browser, servers["scripted"].url) as page:
        fill_in(page, "chat", {"message": "天地"})
        done(page, "chat")
        page.fill("#chat-message", "宇宙")
        page.click("#chat .share")
        link = page.input_value("#chat .link input")
    with opened(browser, link) as page:
        assert page.locator(".turn p").all_inner_texts() == ["天地", f"玄黃{EVIL}"]
        assert page.input_value("#chat-message") == "宇宙"


def test_the_keyboard_alone_reaches_everything(browser, servers):
    with opened(browser, servers["masked"].url) as page:
        focused = "document.activeElement"
        page.keyboard.press("Tab")
        assert "skip" in page.evaluate(f"{focused}.className")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate(f"{focused}.id") == "tab-fill"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate(f"{focused}.id") == "tab-embed"
        page.keyboard.press("Home")
        page.keyboard.press("Tab")
        page.keyboard.insert_text("天[MASK]玄黃")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#fill .bars")
        for _ in range(40):
            page.keyboard.press("Tab")
            assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
            if "name" in page.evaluate(f"{focused}.className"):
                break
        word = page.evaluate(f"{focused}.textContent")
        page.keyboard.press("Enter")
        assert page.evaluate(f"{focused}.value") == f"天{word}玄黃"


def test_options_are_pasted_as_people_write_them(browser, servers):
    with opened(browser, servers["masked"].url) as page:
        page.click("#tab-answer")
        for text in (
            "A:地球 B:木星 C:火星",
            "(A) 地球\n(B) 木星\n(C) 火星",
            "地球\n木星\n火星",
            "Ａ．地球　Ｂ．木星　Ｃ．火星",
        ):
            page.evaluate(
                """text => { const data = new DataTransfer(); data.setData("text", text);
                const paste = new ClipboardEvent("paste", {clipboardData: data, cancelable: true});
                document.querySelector("#options input").dispatchEvent(paste); }""",
                text,
            )
            values = page.locator("#options input").evaluate_all("all => all.map(one => one.value)")
            assert values == ["地球", "木星", "火星"], text


def test_a_reply_comes_piece_by_piece_is_stopped_and_breaks_off_in_words(browser, servers):
    with opened(browser, servers["scripted"].url, "en-US", noise=("ERR_INCOMPLETE",)) as page:
        page.fill("#chat-message", "wait")
        page.press("#chat-message", "Enter")
        page.wait_for_selector(".turn.assistant p:text('玄黃')")
        page.click("#chat .stop")
        page.wait_for_selector("#chat .status[data-t='status.stopped']")
        for last, said in (("fail", "壞了"), ("break", "broke off")):
            page.fill("#chat-message", last)
            page.click("#chat .run")
            page.wait_for_selector(f"#chat .error :text('{said}')")
            assert page.locator(".turn").count() % 2 == 0  # what came before it broke off stays
        page.press("#chat-message", "Shift+Enter")
        assert page.input_value("#chat-message") == "\n"
        page.click("#new")
        assert not page.locator(".turn").count() and not page.inner_text("#chat .error")
        page.click("#tab-complete")
        page.fill("#complete-prompt", "天地")
        done(page, "complete")
        assert page.inner_text("#complete .passage") == f"天地玄黃{EVIL}"
        assert "256" not in page.inner_text("#complete .status") and "64" in page.inner_text(
            "#complete .status"
        )


def fulfil(route, **answer):
    route.fulfill(body=json.dumps({"error": {"message": EVIL}}), **answer)


def test_errors_are_said_in_words_where_they_happen(browser, servers):
    answers = {
        401: ("key", {}), 413: ("error.large", {}), 422: ("error.refused", {}),
        429: ("error.busy", {"Retry-After": "7"}), 500: ("error.server", {}), 503: ("error.draining", {}),
        504: ("error.time", {}),
    }  # fmt: skip
    noise = ("status of", "ERR_")
    with opened(browser, servers["masked"].url, "en-US", noise=noise) as page:
        page.fill("#fill-prompt", "天[MASK]")
        for status, (word, headers) in answers.items():
            page.unroute("**/v1/fill")
            page.route("**/v1/fill", functools.partial(fulfil, status=status, headers=headers))
            page.click("#fill .run")
            if word == "key":
                page.wait_for_selector("#key[open]")
                assert_accessible(page)
                page.keyboard.press("Escape")
                page.wait_for_selector("#fill .error [data-t='error.key']")
                continue
            page.wait_for_selector(f"#fill .error [data-t='{word}']")
            assert (EVIL in page.inner_text("#fill .error")) == (status in (413, 422, 500))
            assert status != 429 or "7 s" in page.inner_text("#fill .error")
            assert not chinese_left(page)
        page.unroute("**/v1/fill")
        page.route("**/v1/fill", lambda route: route.abort())
        page.click("#fill .run")
        page.wait_for_selector("#fill .error [data-t='error.offline']")
        page.unroute("**/v1/fill")
        page.click("#fill .error button")
        page.wait_for_selector("#fill .bars")
        assert not page.inner_text("#fill .error")
        page.click("#tab-answer")
        page.click("#answer .run")
        page.wait_for_selector("#answer .error [data-t='answer.empty']")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser, servers):
    with opened(browser, servers["keyed"].url, noise=("status of",)) as page:
        for key in ("wrong-key", "right-key"):
            page.wait_for_selector("#key[open]")
            page.fill("#key-value", key)
            page.keyboard.press("Enter")
        page.wait_for_selector("[role=tab]")
        assert page.locator("#key-wrong").count() and page.evaluate("sessionStorage.api_key") == "right-key"
        assert "right-key" not in page.evaluate(
            "JSON.stringify(localStorage) + document.cookie + location.href"
        )
        page.click("#fill .code summary")
        page.wait_for_selector("#fill pre:not(:empty)")
        assert "$API_KEY" in page.inner_text("#fill pre") and "right-key" not in page.inner_text("#fill pre")
        page.click("#forget")
        assert page.evaluate("sessionStorage.api_key") is None
        page.goto(servers["keyed"].url + "/docs")  # says nothing of the model, and needs no key
        assert page.locator("#post-v1-fill").count()


def test_the_programs_that_the_page_shows_give_the_same_answer(browser, servers):
    prompt = "天[MASK]'玄\"黃\\$HOME`x`"
    expected = servers["masked"].request("/v1/fill", {"prompt": prompt, "top_k": 5})[1]
    with opened(browser, servers["masked"].url) as page:
        fill_in(page, "fill", {"prompt": prompt})
        page.click("#fill .code summary")
        page.wait_for_selector("#fill pre:not(:empty)")
        curl = page.inner_text("#fill pre")
        page.select_option("#fill .which", "Python")
        python = page.inner_text("#fill pre")
        page.click("#tab-embed")
        page.fill("#embed-texts", "天地\n玄黃")
        page.click("#embed .code summary")
        page.select_option("#embed .which", "Python")
        page.wait_for_selector("#embed pre:has-text('OpenAI')")
        assert "from openai import OpenAI" in page.inner_text("#embed pre")
        compile(page.inner_text("#embed pre"), "embed", "exec")
    run = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    assert json.loads(subprocess.run(["bash", "-c", curl + " -s"], **run).stdout) == expected
    shown = subprocess.run([sys.executable, "-I", "-X", "utf8", "-c", python], **run).stdout
    assert eval(shown) == expected


def test_the_docs_have_every_path_and_field_in_both_languages(browser, servers):
    schema = servers["masked"].request("/openapi.json")[1]
    with opened(browser, servers["masked"].url + "/docs") as page:
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                shown = page.inner_text("#" + re.sub(r"\W+", "-", method + path).strip("-"))
                assert operation[ZH_SUMMARY] in shown and path in shown
        for field in schema["components"]["schemas"]["FillBody"]["properties"]:
            assert page.locator("#post-v1-fill th", has_text=field).count()
        assert "cyclic" in page.inner_text("#post-v1-answer") and "≤ 1000" in page.inner_text("#post-v1-fill")
        assert_accessible(page)
        page.click("#language")
        page.select_option("#scheme", "dark")
        visible = page.evaluate(
            """() => [...document.querySelectorAll("h1, h2, h3, p, td, th, summary, a, option")]
            .filter(one => !one.querySelector("code")).map(one => one.innerText)"""
        )
        examples = ("地球", "木星")
        assert not [text for text in visible if HAN.search(text) and not any(one in text for one in examples)]
        assert_accessible(page, CONTRAST, "#post-v1-fill")
        assert (
            "`" not in page.inner_text("#post-v1-answer") and page.locator("#post-v1-answer p code").count()
        )
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        name = page.locator("#post-v1-fill th code", has_text="word_length")
        assert name.bounding_box()["height"] < 2 * 16  # pixels: one line


def test_openapi_says_what_every_path_and_field_means(servers):
    schema = servers["masked"].request("/openapi.json")[1]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert (
                operation["description"] and HAN.search(operation[ZH_SUMMARY]) and HAN.search(operation[ZH])
            ), path
            if "requestBody" in operation:
                assert "example" in operation["requestBody"]["content"]["application/json"], path
                assert {"401", "422", "429", "503"} <= {*operation["responses"]}
            assert "HTTPValidationError" not in json.dumps(operation)
    for name, body in schema["components"]["schemas"].items():
        if name.endswith("Body") and name != "ErrorBody":
            for field, described in body["properties"].items():
                assert "description" in described, (name, field)


def test_the_page_runs_nothing_but_its_own_lines_and_may_not_be_framed(servers):
    import urllib.request

    for path in ("/", "/docs"):
        with urllib.request.urlopen(servers["masked"].url + path) as answer:
            policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert (
            "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        )
        assert not re.search(
            r'\son\w+=|style=|src=|href="(?!data:,|#|docs|\./|openapi.json)',
            re.sub(r"<script>.*?</script>", "", html, flags=re.S),
        )


def test_a_spoilt_card_is_said_to_be_unreadable(tmp_path, model_dir):
    for number, spoilt in enumerate(({"test": {"model": 3}}, {"test": {"model": {"accuracy": "x"}}})):
        folder = make_head(
            tmp_path / f"{number}",
            model_dir,
            "AutoModelForSequenceClassification",
            card=RunCard(task="exam", results=spoilt),
        )
        with LiveServer(folder) as server:
            status, answer = server.request("/v1/model")
        assert status == 200 and answer["card"]["unreadable"] and not answer["card"]["sets"]


def test_perplexities_and_what_is_not_comparable_come_with_the_card(tmp_path, model_dir):
    before, after = ({"perplexity": value, "tokens": 7} for value in (9.5, 4.5))
    growth = {"sets": {"validation": {"untuned": before, "tuned": after}}}
    card = RunCard(task="mlm", growth=growth, pool="all")
    folder = make_head(tmp_path / "m", model_dir, "AutoModelForMaskedLM", card=card)
    with LiveServer(folder) as server:
        shown = server.request("/v1/model")[1]["card"]
    (one,) = shown["sets"]
    assert shown["not_comparable"] and (one["set"], one["metric"], one["n"]) == (
        "validation",
        "perplexity",
        7,
    )
    assert [(bar["role"], bar["value"]) for bar in one["bars"]] == [("model", 4.5), ("other", 9.5)]
