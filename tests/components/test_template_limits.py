"""A chat template is a program that came with a checkpoint: it writes what transformers has it write, within limits."""

import os
import threading
import time
from contextlib import suppress

import pytest

from mmblocks.assets import resolve_source
from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.conversation import Message, Text
from mmblocks.errors import ConfigError
from mmblocks.templates import rendering
from mmblocks.templates.contents import RefusedByTemplate
from mmblocks.templates.rendering import RENDER_HELPER, TemplateLimitError, render_template
from mmblocks.templates.tokenizer_chat import TokenizerChat

TALK = [{"role": "user", "content": "what\n is it ?"}, {"role": "assistant", "content": " a <b> & \ud800 "}]
SAME = {
    "loops": "{% for m in messages %}{{ loop.index }}{{ m['role'] }}: {{ m.content | trim }}\n{% endfor %}",
    "break": "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "json": "{{ messages[0] | tojson(indent=2) }}{{ {'a': '<é>'} | tojson }}",
    "generation": "{% for m in messages %}{% generation %}  {{ m.content }}{% endgeneration %}\n{% endfor %}",
    "blanks": "  {%- if add_generation_prompt %}\n   yes\n {% else %}\n   no\n {% endif %}\n",
    "namespace": "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[1]['content']) }}{{ eos_token }}",
    "dict": "{{ dict(a=1).items() | list }}{{ dict.fromkeys(['x']) }}",
    "none": "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}",
    "argument": "{{ enable_thinking }}",
}
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested filters": "{{ ([range(99999)] * 99999) | map('sum') | list | length }}",
    "a big string": "{{ 'a' * 10 ** 10 }}",
    "a big power": "{{ 10 ** (10 ** 10) }}",
    "a padded string": "{{ 'a' | center(10 ** 10) }}",
    "a filled string": "{{ '%10000000000d' % 1 }}",
    "a growing namespace": "{% set n = namespace(x='a' * 99) %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a shared nest": "{% set n = namespace(x=['a']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "a macro without end": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a long answer": "{% for a in range(2000) %}{{ 'abcdefghij' * 99 }}{% endfor %}",
    "a folded constant": "{{ 'a' | indent(9 ** 12) | length }}",
    "words": "{{ lipsum(n=10 ** 7) }}",
}


@pytest.fixture
def text_tokenizer():
    return read_text_tokenizer(resolve_source("mmblocks:tinyworld_text"))


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(rendering, "DEADLINE_S", 1.5)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("opened", [False, True])
def test_a_template_writes_what_transformers_has_it_write(name, opened, text_tokenizer):
    text_tokenizer.chat_template = SAME[name]
    own = {"enable_thinking": False}
    names = {"messages": TALK, "tools": None, "documents": None, "add_generation_prompt": opened, **own}
    wanted = text_tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=opened, **own)
    assert render_template(SAME[name], {**text_tokenizer.special_tokens_map, **names}, "it") == wanted


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_asks_too_much_is_stopped_by_its_name(name, soon, text_tokenizer):
    text_tokenizer.chat_template = ENDLESS[name]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"chat template of the text tokenizer .*tinyworld_text was stopped: .*"):
        TokenizerChat(lambda: text_tokenizer).to_spans([Message("user", (Text("what ?"),))])
    assert time.monotonic() - began < 30
    assert render_template("{{ a }}", {"a": "ready again"}, "it") == "ready again"


def test_a_template_that_refuses_and_one_that_is_broken_are_told():
    for jinja, said in (
        ("{{ raise_exception('no system') }}", "no system"),
        ("{% for %}", "xpected"),
        ("{{ 1 + 'a' }}", ""),
    ):
        with pytest.raises(RefusedByTemplate, match=f"it refuses this conversation: .*{said}"):
            render_template(jinja, {}, "it")


def test_a_template_reaches_nothing_of_the_machine():
    for jinja in ("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os }}", "{% include '/etc/passwd' %}"):
        with suppress(RefusedByTemplate):
            assert "root:" not in render_template(jinja, {}, "it")


def test_threads_and_forked_processes_render_beside_each_other():
    found = {}

    def work(number):
        found[number] = [render_template("{{ a }}", {"a": f"{number}.{i}"}, "it") for i in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [f"{n}.{i}" for i in range(20)] for n in range(4)}
    mine = RENDER_HELPER.pid
    if (pid := os.fork()) == 0:
        os._exit(0 if render_template("{{ 1 }}", {}, "it") == "1" and RENDER_HELPER.pid != mine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert RENDER_HELPER.pid == mine


def test_limits_are_named(monkeypatch, soon):
    with pytest.raises(TemplateLimitError, match=r"rendering it took longer than 1\.5 s"):
        render_template(ENDLESS["nested loops"], {}, "it")
    with pytest.raises(TemplateLimitError, match=r"took more than 1 GiB of memory"):
        render_template(ENDLESS["a big string"], {}, "it")
    with pytest.raises(TemplateLimitError, match=r"writes 1980000 characters, and at most 1000\d\d\d are taken"):
        render_template(ENDLESS["a long answer"], {}, "it")
