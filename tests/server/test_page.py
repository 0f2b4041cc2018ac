"""The page of a server: its files, and in a browser what its users do."""

import copy
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pytest
from PIL import Image

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.chat.engine import EngineLimits
from mmblocks.server import ServerLimits, serve
from mmblocks.server.app import PAGE, PAGE_TYPES
from tests.server.asking import RED, encode_png, request

CHROMIUM = "/usr/bin/chromium"
IMAGE, VIDEO = find_media("image.png"), find_media("video.mp4")


@pytest.fixture(scope="module")
def tiny_server():
    """The bundled model, which answers questions about drawings."""
    with serve(mmblocks.load(find_tiny_model()), port=0, name="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(start_server, served_model):
    """A server that writes one answer at a time, for seconds, and lets one question wait."""
    model = copy.deepcopy(served_model)
    model.backbone.lm.get_decoder().register_forward_pre_hook(lambda *_: time.sleep(0.03))
    with start_server(model, engine_limits=EngineLimits(cache_bytes=4 << 20, max_running=1, max_queued=1)) as running:
        yield running


# Files ------------------------------------------------------------------------------------------------------------------


def test_all_files_of_the_page_are_served(tiny_server):
    names = sorted(file.name for file in PAGE.iterdir())
    assert {"index.html", "app.js", "style.css"} < {*names}
    for name in names:
        status, headers, body = request(tiny_server, "GET", f"/page/{name}")
        assert (status, body) == (200, (PAGE / name).read_text())
        assert headers["content-type"] == PAGE_TYPES[(PAGE / name).suffix]
        assert "default-src 'none'" in headers["content-security-policy"]
    assert request(tiny_server, "GET", "/")[2] == (PAGE / "index.html").read_text()


def test_the_page_names_no_other_host():
    for file in PAGE.iterdir():
        assert set(re.findall(r"https?://[^\s\"']+", file.read_text())) <= {"http://www.w3.org/2000/svg"}


def test_what_the_page_refers_to_is_there():
    names = {file.name for file in PAGE.iterdir()}
    for file in PAGE.iterdir():
        text = file.read_text()
        assert {*re.findall(r'"/page/([^"]+)"', text), *re.findall(r'from "\./([^"]+)"', text)} <= names
    script, document = (PAGE / "app.js").read_text(), (PAGE / "index.html").read_text()
    assert {*re.findall(r'find\("([^"]+)"\)', script)} <= {*re.findall(r'id="([^"]+)"', document)}


def test_what_is_written_by_models_and_users_is_never_read_as_markup():
    for file in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text())


# In a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser, url, *, expected=(), **settings):
    """A window; at its end nothing was asked of another host, and the console has no error but `expected` ones."""
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **settings})
    hosts, errors = set(), []
    context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(url)
    wait_for(
        page, "document.getElementById('model-name').textContent != '…' || !document.getElementById('notice').hidden"
    )
    yield page
    context.close()
    assert hosts - {None, ""} <= {"127.0.0.1"}
    assert [error for error in errors if not any(words in error for words in expected)] == []


def wait_for(page, condition):
    """Until an expression is true in the page, whose policy lets no string be run there as playwright's own waiting does."""
    ends = time.monotonic() + 20
    while not page.evaluate(condition) and time.monotonic() < ends:
        page.wait_for_timeout(20)
    assert page.evaluate(condition), condition


def ask(page, text, *files):
    """Ask, and wait for the end of the answer; its text."""
    number = page.locator("article[data-role=assistant]").count()
    if files:
        page.set_input_files("#files", [str(file) for file in files])
        wait_for(page, f"document.querySelectorAll('#attachments li').length == {len(files)}")
    page.fill("#question", text)
    page.press("#question", "Enter")
    return read_answer(page, number)


def begin_answer(page, text="Write as long as you can."):
    """Ask, and wait for the beginning of the answer."""
    page.fill("#question", text)
    page.press("#question", "Enter")
    wait_for(page, "document.querySelector('.writing .body')?.textContent.length > 3")


def change_conversation(page, action, i=0):
    """Rename (to "Other") or delete a conversation of the list."""
    page.once("dialog", lambda dialog: dialog.accept("Other"))
    page.hover(f"#conversations li >> nth={i}")
    page.click(f"#conversations li >> nth={i} >> text={action}")


def read_titles(page):
    return page.locator("#conversations .open").all_inner_texts()


def read_answer(page, number):
    """The text of an answer that has ended."""
    wait_for(
        page,
        f"document.querySelectorAll('article[data-role=assistant] > .foot').length > {number} && "
        "!document.querySelector('.writing')",
    )
    return page.locator("article[data-role=assistant] .body").nth(number).inner_text().strip()


@pytest.mark.browser
def test_questions_about_an_image_two_images_and_a_video(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        assert ask(page, "How many shapes are there?", IMAGE) == "3"
        assert ask(page, "Which way does it move?", VIDEO) in ("left", "right", "up", "down")
        page.click("#new")
        assert ask(page, "Do both pictures show the same shapes?", IMAGE, IMAGE)
        page.locator("text=/tokens, 1 view/").first.wait_for()
        assert page.locator("#conversations li").count() == 2


@pytest.mark.browser
def test_what_an_image_costs_is_shown_with_its_tiles(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        ask(page, "How many shapes are there?", IMAGE)
        page.locator("text=37 tokens, 5 views").wait_for()
        assert not page.locator(".picture svg").is_visible()
        page.click("text=Show tiles")
        assert page.locator(".picture svg rect").count() == 5
        drawing, shown = page.locator(".picture svg").bounding_box(), page.locator(".picture img").bounding_box()
        assert drawing == shown
        assert page.locator(".foot").last.inner_text().startswith("52 + 2 tokens")


@pytest.mark.browser
def test_an_answer_is_stopped_and_written_again(chromium, start_server, served_model):
    model, waits = copy.deepcopy(served_model), [0.03]
    model.backbone.lm.get_decoder().register_forward_pre_hook(lambda *_: time.sleep(waits[0]))
    with start_server(model) as server, open_page(chromium, server.url) as page:
        page.fill("#question", "Write as long as you can.")
        page.press("#question", "Enter")
        wait_for(page, "document.querySelector('.writing .body')?.textContent.length > 3")
        page.press("#question", "Escape")
        read_answer(page, 0)
        assert "stopped" in page.locator(".foot").last.inner_text()
        waits[0] = 0
        page.click("#show-settings")
        page.fill("[name=max_tokens]", "5")
        page.click("text=Done")
        page.click("text=Regenerate")
        read_answer(page, 0)
        assert "5 tokens" in page.locator(".foot").last.inner_text()
        assert page.locator("article").count() == 2


@pytest.mark.browser
def test_a_broken_file_is_refused_in_words_and_the_question_can_be_asked_otherwise(chromium, tiny_server, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with open_page(chromium, tiny_server.url, expected=("400", "net::ERR")) as page:
        ask(page, "What is this?", tmp_path / "broken.png")
        assert "image" in page.locator("article .error").inner_text()
        page.click("text=Edit")
        page.click("[aria-label='Remove broken.png']")
        assert ask(page, "How many shapes are there?", IMAGE) == "3"
        (tmp_path / "words.txt").write_text("no image")
        page.set_input_files("#files", str(tmp_path / "words.txt"))
        page.locator("text=words.txt is no image and no video.").wait_for()


@pytest.mark.browser
def test_conversations_are_there_after_a_reload_and_can_be_renamed_and_deleted(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        ask(page, "How many shapes are there?", IMAGE)
        page.reload()
        page.click("#conversations .open")
        page.locator("text=37 tokens, 5 views").wait_for()
        assert page.locator("article .body").nth(1).inner_text().strip() == "3"
        page.on("dialog", lambda dialog: dialog.accept("Shapes"))
        page.hover("#conversations li")
        page.click("text=Rename")
        page.locator("#conversations >> text=Shapes").wait_for()
        page.hover("#conversations li")
        page.click("text=Delete")
        wait_for(page, "!document.querySelector('#conversations li') && !document.querySelector('article')")


@pytest.mark.browser
def test_two_windows_at_once_lose_nothing(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as first:
        ask(first, "First question.")
        second = first.context.new_page()
        second.goto(tiny_server.url)
        second.click("#conversations .open")
        for page in (first, second):  # both, without waiting for each other
            page.fill("#question", f"From window {page is second}.")
        for page in (first, second):
            page.press("#question", "Enter")
        for page in (first, second):
            read_answer(page, 1)
        third = first.context.new_page()
        third.goto(tiny_server.url)
        wait_for(third, "document.querySelectorAll('#conversations li').length >= 1")
        found = []
        for i in range(third.locator("#conversations .open").count()):
            third.locator("#conversations .open").nth(i).click()
            third.locator("article").first.wait_for()
            found.append(third.locator("#log").inner_text())
        for words in ("From window True.", "From window False."):
            assert any(words in text for text in found)
        assert all(text.count("First question.") == 1 for text in found)


@pytest.mark.browser
def test_the_keyboard_is_enough(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("How many?")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("Say a number.")
        assert page.input_value("#question") == "How many?\nSay a number."
        page.keyboard.press("Enter")
        read_answer(page, 0)
        reached = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert {"new", "show-model", "show-settings", "attach", "question", "Copy", "Regenerate"} <= reached
        page.focus("#show-settings")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.name") == "system"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "show-settings"
        assert page.locator("#live").inner_text().startswith("Answer: ")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_downward_only(chromium, tiny_server, scheme):
    size = {"viewport": {"width": 360, "height": 640}, "color_scheme": scheme}
    with open_page(chromium, tiny_server.url, **size) as page:
        ask(page, "How many shapes are there? " + "averylongwordwithoutspaces" * 10, IMAGE, VIDEO)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.getElementById('log').scrollWidth") <= 360
        assert not page.locator("#side").is_visible()
        page.click("#toggle-side")
        assert page.locator("#side").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#side").is_visible()
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 300) is (scheme == "dark")


@pytest.mark.browser
def test_files_are_dropped_and_pasted(chromium, tiny_server):
    give = """(kind) => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 40;
        return new Promise((done) => canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], `${kind}.png`, { type: "image/png" }));
            const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
            done();
        }));
    }"""
    with open_page(chromium, tiny_server.url) as page:
        page.evaluate(give, "drop")
        page.locator("#attachments >> text=drop.png").wait_for()
        page.evaluate(give, "paste")
        page.locator("#attachments >> text=paste.png").wait_for()
        assert ask(page, "Are they the same?")
        assert page.locator(".visuals img").count() == 2


@pytest.mark.browser
def test_a_server_with_a_key_asks_for_it(chromium, start_server):
    with start_server(api_keys=["secret"]) as server, open_page(chromium, server.url, expected=("401",)) as page:
        page.locator("#settings").wait_for()
        assert page.evaluate("document.activeElement.name") == "key"
        page.click("text=Done")
        ask(page, "Without a key?")
        assert "key" in page.locator("article .error").inner_text()
        page.fill("[name=key]", "secret")
        page.fill("[name=max_tokens]", "4")
        page.click("text=Done")
        ask(page, "What is this?")
        assert "4 tokens" in page.locator(".foot").last.inner_text()


@pytest.mark.browser
def test_a_server_that_has_gone_is_named(chromium, start_server):
    server = start_server()
    with open_page(chromium, server.url, expected=("net::ERR", "Failed to load")) as page:
        server.close()
        ask(page, "Is anybody there?")
        assert "cannot be reached" in page.locator("article .error").inner_text()


@pytest.mark.browser
def test_markup_in_texts_is_shown_as_text(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        ask(page, "<img src=x onerror=alert(1)> <b>bold</b>\n\n```\n<i>code</i>\n```")
        body = page.locator("article .body").first
        assert "<img src=x" in body.inner_text()
        assert body.locator("pre").inner_text().strip() == "<i>code</i>"
        assert body.locator("b, img, i").count() == 0


@pytest.mark.browser
def test_tiles_that_are_shown_stay_shown_and_the_focus_stays_at_their_button(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        ask(page, "How many shapes are there?", IMAGE)
        page.click("text=Show tiles")
        ask(page, "Which way does it move?", VIDEO)
        page.locator("text=8 frames").wait_for()
        assert page.locator(".picture svg").is_visible()
        page.locator("text=Regenerate").focus()
        page.keyboard.press("Enter")
        read_answer(page, 1)
        assert page.evaluate("document.activeElement.id") == "log"
        page.locator("#conversations .open").focus()
        page.keyboard.press("Enter")
        wait_for(page, "document.activeElement.className == 'open' && document.activeElement.ariaCurrent == 'true'")


@pytest.mark.browser
def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(chromium, slow_server):
    with open_page(chromium, slow_server.url) as page:
        begin_answer(page)
        change_conversation(page, "Delete")
        wait_for(page, "!document.querySelector('article') && document.getElementById('stop').hidden")
        ask_and_stop(page, "Another one.")
        page.reload()
        page.locator("#conversations .open").first.wait_for()
        assert read_titles(page) == ["Another one."]


def ask_and_stop(page, text):
    begin_answer(page, text)
    page.keyboard.press("Escape")
    wait_for(page, "!document.querySelector('.writing')")


@pytest.mark.browser
def test_a_conversation_that_is_renamed_while_it_is_answered_is_kept_once(chromium, slow_server):
    with open_page(chromium, slow_server.url) as page:
        begin_answer(page)
        page.click("#new")
        change_conversation(page, "Rename")
        page.locator("#conversations >> text=Other").wait_for()
        page.press("#question", "Escape")
        wait_for(page, "document.getElementById('stop').hidden")
        page.click("#conversations .open")
        page.locator("article[data-role=assistant] >> text=stopped").wait_for()
        assert read_titles(page) == ["Other"]


@pytest.mark.browser
def test_what_could_not_be_stored_is_said_and_stored_with_the_next_answer(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        ask(page, "First.")
        page.evaluate(
            "() => { const put = IDBObjectStore.prototype.put; window.mend = () => { IDBObjectStore.prototype.put = put; };"
            "IDBObjectStore.prototype.put = function () { try { this.transaction.abort(); } catch {} }; }"  # as on a full disk
        )
        ask(page, "Second.")
        assert "cannot be kept in the browser" in page.locator("#notice").inner_text()
        page.evaluate("window.mend()")
        ask(page, "Third.")
        page.reload()
        page.click("#conversations .open")
        page.locator("article >> text=Third.").wait_for()
        assert page.locator("article").count() == 6
        assert read_titles(page) == ["First."]


@pytest.mark.browser
def test_conversations_of_the_first_version_of_the_page_are_found(chromium, tiny_server):
    with open_page(chromium, tiny_server.url, expected=("404",)) as page:  # /health has no icon
        blank = page.context.new_page()
        blank.goto(f"{tiny_server.url}health")
        blank.evaluate(
            "() => new Promise((done) => { indexedDB.deleteDatabase('mmblocks').onsuccess = () => {"
            "const request = indexedDB.open('mmblocks', 1);"
            "request.onupgradeneeded = () => request.result.createObjectStore('conversations', { keyPath: 'id' }).put("
            "{ id: 'a', title: 'Old', version: 1, changed: 1, messages: [{ role: 'user', parts: [{ type: 'text', text: 'First.' }] }] });"
            "request.onsuccess = () => { request.result.close(); done(); }; }; })"
        )
        blank.close()
        page.reload()
        page.click("#conversations >> text=Old")
        page.click("article >> text=Answer")  # a question that the window was closed over
        read_answer(page, 0)
        assert page.locator("article").count() == 2


@pytest.mark.browser
def test_another_window_shows_what_was_changed_with_its_own_tiles(chromium, tiny_server, tmp_path):
    (tmp_path / "red.png").write_bytes(encode_png(RED))
    with open_page(chromium, tiny_server.url) as first:
        ask(first, "How many shapes are there?", IMAGE)
        second = first.context.new_page()
        second.goto(tiny_server.url)
        second.click("#conversations .open")
        second.locator("text=37 tokens, 5 views").wait_for()
        wanted = "document.querySelector('.picture svg')?.getAttribute('viewBox') == '0 0 {} {}'"
        assert second.evaluate(wanted.format(*Image.open(IMAGE).size))
        first.bring_to_front()
        first.click("text=Edit")
        first.click("[aria-label='Remove image.png']")
        ask(first, "What colour is it?", tmp_path / "red.png")
        wait_for(second, wanted.format(*RED.size))


@pytest.mark.browser
def test_what_is_too_large_is_refused_in_words(chromium, start_server, tmp_path):
    noise = encode_png(Image.effect_noise((400, 400), 90))
    (tmp_path / "noise.png").write_bytes(noise)
    limits = ServerLimits(body_bytes=int(len(noise) * 1.5))
    with start_server(limits=limits) as server, open_page(chromium, server.url, expected=("413",)) as page:
        ask(page, "What is this?", *[tmp_path / "noise.png"] * 3)
        assert "send smaller or fewer images and videos" in page.locator("article .error").inner_text()


@pytest.mark.browser
def test_a_full_queue_is_said_and_the_question_can_be_asked_again(chromium, slow_server):
    with open_page(chromium, slow_server.url, expected=("429",)) as first:
        second, third = (first.context.new_page() for _ in range(2))
        begin_answer(first)
        for page in (second, third):
            page.goto(slow_server.url)
            wait_for(page, "document.getElementById('model-name').textContent != '…'")
            page.fill("#question", "And this?")
            page.press("#question", "Enter")
            wait_for(page, "document.querySelector('article[data-role=assistant]')")
            page.wait_for_timeout(200)
        wait_for(third, "document.querySelector('article .error')")
        assert "Try again in 1 second." in third.locator("article .error").inner_text()
        for page in (first, second):
            page.bring_to_front()
            page.click("#stop")
            wait_for(page, "!document.querySelector('.writing')")
        third.bring_to_front()
        third.click("text='Try again'")
        wait_for(third, "document.querySelector('.writing .body')?.textContent.length > 3")
        third.click("#stop")
        read_answer(third, 0)


@contextmanager
def relay_to(port):
    """The port of a relay to a server, and a function that cuts all its connections."""
    listener, ends = socket.create_server(("127.0.0.1", 0)), []

    def copy_bytes(source, target):
        with suppress(OSError):
            while content := source.recv(1 << 16):
                target.sendall(content)

    def accept_all():
        while True:
            try:
                pair = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            ends.extend(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(target=copy_bytes, args=(source, target), daemon=True).start()

    def cut():
        for end in ends:
            with suppress(OSError):  # was closed by its other side
                end.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=accept_all, daemon=True)
    thread.start()
    yield listener.getsockname()[1], cut
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    cut()
    thread.join()
    for end in ends:
        end.close()


@pytest.mark.browser
def test_an_answer_whose_connection_was_cut_is_kept_and_can_be_asked_again(chromium, slow_server):
    with (
        relay_to(slow_server.port) as (port, cut),
        open_page(chromium, f"http://127.0.0.1:{port}/", expected=("net::ERR",)) as page,
    ):
        begin_answer(page)
        cut()
        text = read_answer(page, 0)
        assert text
        assert "connection was lost" in page.locator("article .error").inner_text()
        page.click("text='Try again'")
        wait_for(page, "document.querySelector('.writing .body')?.textContent.length > 3")
        page.click("#stop")
        read_answer(page, 0)
        assert page.locator("article .error").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_texts_are_copied_also_where_the_browser_has_no_clipboard_for_the_page(chromium, tiny_server, has_clipboard):
    with open_page(chromium, tiny_server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate("window.read = () => window.clipboard.readText(); window.clipboard = navigator.clipboard")
        if not has_clipboard:  # as for http from another machine
            page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        ask(page, "Some words.")
        page.click("article[data-role=user] >> text=Copy")
        page.locator("text=Copied").first.wait_for()
        assert page.evaluate("window.read()") == "Some words."


@pytest.mark.browser
def test_the_list_on_a_narrow_screen_is_closed_by_touch_and_by_keys(chromium, tiny_server):
    with open_page(chromium, tiny_server.url, viewport={"width": 360, "height": 640}, has_touch=True) as page:
        for close in (
            lambda: page.tap("#close-side"),
            lambda: page.touchscreen.tap(340, 300),
            lambda: page.keyboard.press("Escape"),
        ):
            page.tap("#toggle-side")
            assert page.locator("#side").is_visible()
            assert page.get_attribute("#toggle-side", "aria-expanded") == "true"
            assert page.evaluate("document.activeElement.id") == "close-side"
            close()
            assert not page.locator("#side").is_visible()
            assert page.get_attribute("#toggle-side", "aria-expanded") == "false"


@pytest.mark.browser
def test_settings_that_are_no_json_are_left_aside(chromium, tiny_server):
    with open_page(chromium, tiny_server.url) as page:
        page.evaluate("localStorage.setItem('settings', '{')")
        page.reload()
        assert ask(page, "How many shapes are there?", IMAGE) == "3"
