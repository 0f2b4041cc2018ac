"""What is not answered is refused by a status and an error that name the field, in OpenAI's form."""

import io
import json

import openai
import pytest
from PIL import Image

from mmblocks.server import ServerLimits
from tests.server.asking import (
    BLUE,
    CLIP,
    NAME,
    QUESTION,
    RED,
    ask,
    clip,
    encode_png,
    frames,
    make_client,
    make_uri,
    picture,
    post,
    request,
    user,
)


def refuse(server, messages=QUESTION, **fields):
    """The error of a request, as the client of OpenAI reads it."""
    with pytest.raises(openai.BadRequestError) as found:
        ask(server, messages, **fields)
    error = found.value
    assert error.body["type"] == "invalid_request_error"
    return error.param, error.code, error.body["message"]


# Fields ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 301),
        ("max_completion_tokens", 301),
        ("max_completion_tokens", True),
        ("max_tokens", "8"),
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ""),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", ["a"] * 17),
        ("n", 0),
        ("n", 5),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("min_tokens", 9),
        ("repetition_penalty", 0),
        ("mm_processor_kwargs", [1]),
    ],
)
def test_a_value_that_a_field_cannot_have_is_refused_by_its_name(server, field, value):
    fields = {"logprobs": True, field: value} if field == "top_logprobs" else {field: value}
    param, code, message = refuse(server, **fields)
    assert (param, code) == (field, "invalid_value")
    assert field in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"mm_processor_kwargs": {"num_frames": 0}}, "mm_processor_kwargs.num_frames"),
        ({"mm_processor_kwargs": {"max_pixels": 5}}, "mm_processor_kwargs.max_pixels"),
        ({"media_io_kwargs": {"video": {"fps": 2}}}, "media_io_kwargs.video.fps"),
        ({"media_io_kwargs": {"video": {"num_frames": 1000}}}, "media_io_kwargs.video.num_frames"),
        ({"media_io_kwargs": {"image": {}}}, "media_io_kwargs.image"),
        ({"media_io_kwargs": {"video": 3}}, "media_io_kwargs.video"),
        (
            {"media_io_kwargs": {"video": {"num_frames": 2}}, "mm_processor_kwargs": {"num_frames": 3}},
            "media_io_kwargs.video.num_frames",
        ),
    ],
    ids=str,
)
def test_fields_that_contradict_or_hold_unknown_keys_are_refused(server, fields, param):
    assert refuse(server, **fields)[0] == param


def test_options_of_a_stream_are_checked(server):
    body = {"model": NAME, "messages": QUESTION}
    for changed, param in (
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"stream": "yes"}, "stream"),
    ):
        status, _, answer = post(server, "/v1/chat/completions", {**body, **changed})
        assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 1),
        ("logit_bias", {"5": 100}),
        ("functions", [{"name": "f"}]),
        ("reasoning_effort", "high"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x", "format": "wav"}),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("service_tier", "flex"),
        ("prediction", {"type": "content", "content": "x"}),
        ("ignore_eos", True),
        ("min_p", 0.1),
        ("stop_token_ids", [3]),
        ("chat_template_kwargs", {"thinking": True}),
        ("echo", True),
    ],
)
def test_a_field_that_is_not_supported_is_refused_and_never_ignored(server, field, value):
    param, code, message = refuse(server, **{field: value})
    assert (param, code) == (field, "unsupported_field")
    assert message.startswith(f"{field} is not supported")


def test_a_field_that_nobody_knows_is_refused_with_what_it_is_like(server):
    param, code, message = refuse(server, temprature=1)
    assert (param, code) == ("temprature", "unknown_field")
    assert "Did you mean 'temperature'?" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "store": False},
        {"response_format": {"type": "text"}, "tool_choice": "auto", "parallel_tool_calls": False, "min_p": 0},
        {"user": "somebody", "service_tier": "auto", "modalities": ["text"], "temperature": None, "stop": None},
    ],
)
def test_values_that_ask_for_nothing_change_nothing(server, fields):
    assert ask(server, **fields).choices == ask(server).choices


def test_true_is_not_the_number_one(server):
    assert refuse(server, best_of=True)[0] == "best_of"
    assert refuse(server, presence_penalty=False)[0] == "presence_penalty"


# Messages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0].type"),
        (user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), "messages[0].content[0].type"),
        (user("a", {"type": "text", "text": 3}), "messages[0].content[1].text"),
        (user({"type": "text", "text": "a", "bold": True}), "messages[0].content[0].bold"),
        ([*QUESTION, {"role": "assistant", "content": "red"}], "messages[1].role"),
        ([{"role": "user", "content": "a", "name": "me"}], "messages[0].name"),
        ([{"role": "tool", "content": "a", "tool_call_id": "x"}], "messages[0].role"),
        (
            user({"type": "image_url", "image_url": {"url": "x", "detail": "high"}}),
            "messages[0].content[0].image_url.detail",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_message_that_cannot_be_read_is_named(server, messages, param):
    assert refuse(server, messages)[0] == param


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": make_uri(b"no image")}}, "not an image"),
        ({"type": "image_url", "image_url": {"url": make_uri(encode_png(RED)[:-40])}}, "cut off or damaged"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,####"}}, "base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "zero bytes"),
        ({"type": "image_url", "image_url": {"url": "data:nothing"}}, "no comma"),
        ({"type": "image_url", "image_url": {"url": 5}}, "write a URI"),
        ({"type": "image_url", "image_url": {}}, "write a URI"),
        ({"type": "image_url", "image_url": {"url": ["a"]}}, "write a URI"),
        (clip(b"no video"), "video"),
        (clip(CLIP[:700]), "video"),
        ({"type": "video_url", "video_url": {"url": []}}, "0 images"),
        ({"type": "video_url", "video_url": {"url": [*frames(2), make_uri(b"no image")]}}, "not an image"),
        ({"type": "video_url", "video_url": {"url": [*frames(2), *frames(1, (9, 9))]}}, "frame 2 is 9x9"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_media_that_cannot_be_read_are_named_by_message_and_part(server, part, reason):
    messages = [*user(picture(BLUE), "?"), {"role": "assistant", "content": "a"}, *user("What?", picture(RED), part)]
    param, code, message = refuse(server, messages)
    assert (param, code) == ("messages[2].content[2]", "invalid_media")
    assert reason in message
    assert message.startswith("messages[2].content[2]")


@pytest.mark.parametrize(
    "url",
    [
        __file__,
        f"file://{__file__}",
        "/etc/passwd",
        "../../etc/passwd",
        "ftp://example.com/a.png",
        "http://127.0.0.1:1/a.png",
        "https://example.com/a.png",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_no_path_of_this_machine_and_no_url_is_opened(server, monkeypatch, kind, url):
    def opened(*_, **__):
        raise AssertionError("something was opened")

    monkeypatch.setattr("mmblocks.server.messages.fetch_url", opened)
    param, code, message = refuse(server, user({"type": f"{kind}_url", f"{kind}_url": {"url": url}}))
    assert (param, code) == ("messages[0].content[0]", "invalid_media")
    assert "data:" in message


def test_urls_are_fetched_where_the_server_allows_them_but_not_from_private_addresses(start_server, image_host):
    with start_server(allow_urls=True) as running:
        _, _, message = refuse(running, user({"type": "image_url", "image_url": {"url": image_host.url}}))
    assert "private address" in message
    assert image_host.requests == 0


def test_urls_of_a_host_that_is_allowed_by_name_are_fetched(start_server, image_host):
    part = {"type": "image_url", "image_url": {"url": image_host.url}}
    with start_server(allow_urls=["127.0.0.1"]) as running:
        assert ask(running, user(part, "What?")).choices == ask(running, user(picture(RED), "What?")).choices
        assert image_host.requests == 1
        redirected = {"type": "image_url", "image_url": {"url": image_host.redirect_to("http://localhost:1/a.png")}}
        assert "private address" in refuse(running, user(redirected))[2]
        redirected = {"type": "image_url", "image_url": {"url": image_host.redirect_to("file:///etc/passwd")}}
        assert "only http and https" in refuse(running, user(redirected))[2]


@pytest.mark.parametrize(
    ("limits", "messages", "reason"),
    [
        ({"max_px": 1000}, user(picture(RED)), "2,400 pixels; send at most 1,000"),
        ({"visuals": 1}, user(picture(RED), picture(BLUE)), "more than 1 images"),
        ({"frames": 2}, user({"type": "video_url", "video_url": {"url": frames(3)}}), "write 1 to 2"),
        ({"video_px": 1000}, user({"type": "video_url", "video_url": {"url": frames(3)}}), "1,800 pixels"),
        ({"clip_s": 0.1}, user(clip()), "send at most 0.1 s"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_over_a_limit_is_refused_before_it_is_decoded(start_server, limits, messages, reason):
    with start_server(limits=ServerLimits(**limits)) as running:
        param, _, message = refuse(running, messages)
        assert reason in message
        assert param.startswith("messages[0].content[")
        assert ask(running).choices


def test_an_image_that_would_unpack_to_gigabytes_is_refused_by_its_header(server):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    _, code, message = refuse(server, user({"type": "image_url", "image_url": {"url": make_uri(bomb.getvalue())}}))
    assert code == "invalid_media"
    assert "too large" in message


def test_a_prompt_and_an_answer_that_do_not_fit_are_refused(server):
    long = [{"role": "user", "content": "circle " * 900}]
    param, code, message = refuse(server, long, max_tokens=300)
    assert (param, code) == ("messages", "context_length_exceeded")
    assert "1024" in message
    assert refuse(server, [{"role": "user", "content": "circle " * 3000}])[0] == "messages"


def test_an_answer_is_shortened_to_what_fits_where_no_length_is_asked_for(server):
    asked = make_client(server).chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "circle " * 950}]
    )
    assert asked.usage.total_tokens <= 1024


def test_more_tokens_at_least_than_fit_are_refused(server):
    body = {"model": NAME, "messages": [{"role": "user", "content": "circle " * 1000}], "min_tokens": 250}
    status, _, answer = post(server, "/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
    assert "min_new_tokens=250" in answer["error"]["message"]


def test_half_of_a_character_is_refused(server):
    body = {"model": NAME, "messages": [{"role": "user", "content": "a\ud83d"}]}
    status, _, answer = post(server, "/v1/chat/completions", body)
    assert status == 400
    assert "half of a character" in answer["error"]["message"]


# Routes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_in_the_form_of_openai(server, method, path, status, code):
    got, headers, body = request(server, method, path)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/plan"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b"null", b'{"a": 1} x'],
    ids=lambda body: repr(body[:10]),
)
def test_a_body_that_is_no_json_object_is_refused(server, path, body):
    status, _, answer = post(server, path, body)
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


def test_a_body_with_an_enormous_number_is_refused(server):
    body = f'{{"model": "{NAME}", "messages": [], "seed": {"9" * 5000}}}'.encode()
    assert post(server, "/v1/chat/completions", body)[0] == 400
    body = json.dumps({"model": NAME, "messages": QUESTION, "seed": 10**400}).encode()
    status, _, answer = post(server, "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "seed")


@pytest.mark.parametrize("name", ["other", "", "tiny-model/../x"])
def test_another_model_is_not_found(server, name):
    with pytest.raises(openai.NotFoundError) as found:
        ask(server, model=name)
    assert found.value.code == "model_not_found"
    assert NAME in found.value.body["message"]


def test_a_request_without_a_model_is_refused(server):
    status, _, answer = post(server, "/v1/chat/completions", {"messages": QUESTION})
    assert (status, answer["error"]["param"]) == (400, "model")


def test_a_plan_refuses_what_a_request_refuses(server):
    status, _, answer = post(server, "/api/plan", {"messages": user(picture(RED), clip(b"no video"))})
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[1]")
    status, _, answer = post(server, "/api/plan", {"messages": QUESTION, "temperature": 1})
    assert (status, answer["error"]["param"]) == (400, "temperature")


def test_no_error_shows_a_path_of_this_machine(server):
    said = [
        post(server, "/v1/chat/completions", {"model": NAME, "messages": user(part), "max_tokens": 2})[2]
        for part in (
            {"type": "image_url", "image_url": {"url": make_uri(b"no image")}},
            clip(b"no video"),
            clip(CLIP[:700]),
            {"type": "image_url", "image_url": {"url": make_uri(encode_png(RED)[:-40])}},
        )
    ]
    assert all("error" in one for one in said)
    assert "/" not in json.dumps(said).replace("https://", "").replace("and/or", "")


# Keys and hosts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(start_server):
    with start_server(api_keys=["first-key", "second-key"]) as running:
        yield running


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_of_the_keys_opens(locked, key):
    assert make_client(locked).with_options(api_key=key).models.list().data


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-key2"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/api/plan"),
        ("GET", "/metrics"),
        ("GET", "/v1/x"),
    ],
)
def test_without_a_key_nothing_is_answered(locked, method, path, header):
    headers = {} if header is None else {"Authorization": header}
    status, got, body = request(locked, method, path, b"{}" if method == "POST" else None, headers)
    assert (status, body["error"]["code"], body["error"]["type"]) == (401, "invalid_api_key", "authentication_error")
    assert got["www-authenticate"] == "Bearer"


def test_a_wrong_key_is_an_authentication_error_of_the_client(locked):
    with pytest.raises(openai.AuthenticationError):
        ask(locked)


def test_the_page_and_what_it_needs_to_ask_for_a_key_need_none(locked):
    assert request(locked, "GET", "/")[0] == 200
    assert request(locked, "GET", "/health")[0] == 200
    assert request(locked, "GET", "/api/model")[2]["needs_key"] is True


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", ""])
def test_a_name_that_another_site_has_pointed_here_is_refused(server, host):
    status, _, body = request(server, "GET", "/v1/models", headers={"Host": host})
    assert (status, body["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_this_machine_is_known_by_its_local_names(server, host):
    assert request(server, "GET", "/v1/models", headers={"Host": host})[0] == 200


def test_a_proxy_in_front_may_ask_by_its_name(start_server):
    with start_server(allow_hosts=["Models.example"]) as running:
        assert request(running, "GET", "/v1/models", headers={"Host": "models.example"})[0] == 200
        assert request(running, "GET", "/v1/models", headers={"Host": "other.example"})[0] == 403


@pytest.mark.parametrize(
    ("origin", "status"), [("http://evil.example", 403), ("null", 403), ("http://localhost:1", 200)]
)
def test_pages_of_other_sites_may_not_ask(server, origin, status):
    headers = {"Host": "localhost:1", "Origin": origin}
    assert post(server, "/api/plan", {"messages": QUESTION}, headers)[0] == status
