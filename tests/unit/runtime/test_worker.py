"""The RunPod worker's parts without a process: settings, flags, routes, events, gpt-oss, concurrency."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.worker import engine, flags, gpt_oss, handler
from runtime.worker.engine import concurrency, kv_tokens
from runtime.worker.proxy import failure
from runtime.worker.routes import InputError, engine_request
from runtime.worker.settings import Settings, engine_environment, misspelt
from runtime.worker.stream import EventSplitter, data_of, is_last, parsed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(**changes: Any) -> Settings:
    return Settings(**{"model": "openai/gpt-oss-20b", "model_revision": COMMIT, **changes})


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*Settings.model_fields, "model_name", "vllm_port"]:
        monkeypatch.delenv(name.upper(), raising=False)


def test_settings_come_from_the_environment_and_empty_ones_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL": "a/b", "MODEL_REVISION": COMMIT, "MAX_MODEL_LEN": "4096", "DTYPE": ""}.items():
        monkeypatch.setenv(name, value)
    found = Settings()
    assert (found.model, found.max_model_len, found.dtype) == ("a/b", 4096, None)


def test_runpods_own_name_for_the_model_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "a/b")
    monkeypatch.setenv("MODEL_REVISION", COMMIT)
    assert Settings().model == "a/b"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_revision": None}, "MODEL_REVISION"),
        ({"model_revision": "main"}, "MODEL_REVISION"),
        ({"model": "gpt-oss-20b"}, "OWNER/NAME"),
        ({"model": "/nowhere"}, "config.json"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal"),
        ({"max_model_len": 0}, "greater than"),
        ({"vllm_extra_args": "--x 'y"}, "quotation"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_with_its_reason(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        settings(**changes)


def test_a_moving_revision_is_taken_when_asked_for() -> None:
    assert settings(model_revision="main", allow_moving_revision=True).model_revision == "main"


def test_a_model_in_a_folder_needs_no_revision_and_goes_offline(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    local = settings(model=str(tmp_path), model_revision=None)
    environment = engine_environment(local, {"PATH": "/bin"}, volume=tmp_path)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_HOME" not in environment


def test_downloads_go_to_the_network_volume_when_there_is_one(tmp_path: Path) -> None:
    environment = engine_environment(settings(), {}, volume=tmp_path)
    assert environment["HF_HUB_CACHE"] == str(tmp_path / "huggingface-cache/hub")
    assert "HF_HOME" not in engine_environment(settings(), {}, volume=tmp_path / "absent")


def test_misspelt_settings_are_noticed() -> None:
    assert misspelt(["MAX_MODEL_LENGTH", "PATH", "MAX_NUM_SEQ", "MODEL"]) == {
        "MAX_NUM_SEQ": "MAX_NUM_SEQS",
        "MAX_MODEL_LENGTH": "MAX_MODEL_LEN",
    }


def test_the_command_has_what_is_set_then_defaults_and_the_users_own_flags_last() -> None:
    chosen = settings(
        max_model_len=10, enable_prefix_caching=False, disable_log_stats=True, vllm_extra_args="--a 'b c'"
    )
    command = flags.serve_command(chosen, {"max_model_len": 99, "tool_call_parser": "openai", "enforce_eager": True})
    assert command[:7] == ["vllm", "serve", "openai/gpt-oss-20b", "--host", "127.0.0.1", "--port", "8000"]
    assert command[command.index("--max-model-len") + 1] == "10"
    assert command[command.index("--revision") + 1] == COMMIT
    assert command[command.index("--tokenizer-revision") + 1] == COMMIT
    assert {"--no-enable-prefix-caching", "--enforce-eager", "--disable-log-stats"} <= set(command)
    assert command[-2:] == ["--a", "b c"]


def test_a_switch_that_is_off_is_left_out() -> None:
    command = flags.serve_command(settings(disable_log_stats=False), {})
    assert not any("disable-log-stats" in word for word in command)


def test_each_row_of_the_table_is_a_setting_and_stands_once() -> None:
    names = [flag.setting for flag in flags.TABLE]
    assert set(names) <= set(Settings.model_fields)
    assert len(names) == len(set(names))


def parser_like_the_table() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for option in flags.ALWAYS:
        parser.add_argument(option)
    actions: dict[flags.Kind, Any] = {
        flags.Kind.VALUE: "store",
        flags.Kind.TOGGLE: argparse.BooleanOptionalAction,
        flags.Kind.SWITCH: "store_true",
    }
    for flag in flags.TABLE:
        parser.add_argument(flag.option, action=actions[flag.kind])
    return parser


def test_the_table_agrees_with_a_parser_that_has_all_its_flags() -> None:
    assert flags.drift(parser_like_the_table()) == []


def test_drift_names_flags_that_are_gone_and_flags_of_another_kind() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", action="store_true")
    found = flags.drift(parser)
    assert "--seed: is a switch, the table says value" in found
    assert "--host: no such flag" in found
    assert len(found) == len(flags.TABLE) + len(flags.ALWAYS)


@pytest.mark.parametrize(
    ("model", "memory", "gpus", "expected"),
    [
        ("openai/gpt-oss-120b", 85.0, 1, {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}),
        ("openai/gpt-oss-120b", 48.0, 4, {}),
        ("openai/gpt-oss-20b", 85.0, 1, {}),
        ("openai/gpt-oss-20b", 25.0, 1, {"max_model_len": 32768}),
        ("openai/gpt-oss-20b", None, 1, {}),
    ],
)
def test_gpt_oss_gets_tool_calls_and_memory_that_fits(
    model: str, memory: float | None, gpus: int, expected: dict[str, object]
) -> None:
    found = gpt_oss.defaults(settings(model=model, tensor_parallel_size=gpus), memory)
    assert found["tool_call_parser"] == "openai"
    assert found["enable_auto_tool_choice"] is True
    assert expected.items() <= found.items()
    if not expected:
        assert len(found) == 2


def test_gpt_oss_that_cannot_fit_is_refused_before_its_download() -> None:
    with pytest.raises(ValueError, match="60 GB"):
        gpt_oss.defaults(settings(model="openai/gpt-oss-120b"), 48.0)


def test_other_models_get_vllms_own_defaults() -> None:
    assert gpt_oss.defaults(settings(model="a/llama"), 85.0) == {}


@pytest.mark.parametrize(
    "route", ["/v1/chat/completions", "v1/chat/completions", "/openai/v1/chat/completions", "chat/completions"]
)
def test_open_ai_routes_are_understood_in_all_their_spellings(route: str) -> None:
    request = engine_request({"openai_route": route, "openai_input": {"stream": True}}, model="m", harmony=True)
    assert (request.route, request.method, request.stream, request.raw) == ("/v1/chat/completions", "POST", True, True)
    assert request.body["model"] == "m"


def test_models_are_asked_for_without_a_body() -> None:
    request = engine_request({"route": "/v1/models"}, model="m", harmony=False)
    assert (request.method, request.body, request.stream) == ("GET", {}, False)


def test_the_callers_own_model_name_stays() -> None:
    request = engine_request({"route": "/v1/responses", "body": {"model": "lora"}}, model="m", harmony=False)
    assert request.body == {"model": "lora"}


def test_a_plain_prompt_goes_through_the_chat_template_of_gpt_oss_and_as_it_is_elsewhere() -> None:
    job = {"prompt": "hi", "sampling_params": {"max_tokens": 3}}
    harmony = engine_request(job, model="m", harmony=True)
    other = engine_request(job, model="m", harmony=False)
    assert harmony.route == "/v1/chat/completions"
    assert harmony.body == {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
    assert (other.route, other.body) == ("/v1/completions", {"model": "m", "max_tokens": 3, "prompt": "hi"})


@pytest.mark.parametrize(
    "job",
    [
        None, "text", [], {}, {"prompt": 3}, {"prompt": "a", "messages": []}, {"messages": "a"},
        {"openai_route": 3}, {"openai_route": "/v1/files"}, {"openai_route": "/v1/../metrics"},
        {"route": "/v1/responses", "body": []}, {"prompt": "a", "sampling_params": 3},
    ],
)  # fmt: skip
def test_input_that_is_no_request_is_refused(job: object) -> None:
    with pytest.raises(InputError):
        engine_request(job, model="m", harmony=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["openai_route", "openai_input", "route", "body", "prompt", "messages", "sampling_params", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_a_request_of_a_known_route_or_refused(job: object) -> None:
    try:
        request = engine_request(job, model="m", harmony=False)
    except InputError:
        return
    assert request.method in {"GET", "POST"}
    json.dumps(request.body)


EVENT_TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n"), min_size=1, max_size=12)


@given(st.lists(EVENT_TEXT, max_size=6), st.lists(st.integers(1, 7), max_size=60), st.sampled_from(["\n", "\r\n"]))
def test_events_come_out_whole_however_the_bytes_are_cut(texts: list[str], cuts: list[int], newline: str) -> None:
    data = "".join(f"data: {json.dumps({'t': text}, ensure_ascii=False)}{newline * 2}" for text in texts).encode()
    splitter, got, position = EventSplitter(), [], 0
    for cut in [*cuts, len(data)]:
        got += list(splitter.feed(data[position : position + cut]))
        position += cut
    assert [parsed(event) for event in got] == [{"t": text} for text in texts]
    assert splitter.rest == b""


def test_an_event_without_an_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.worker.stream.MAX_EVENT", 10)
    with pytest.raises(ValueError, match="without an end"):
        list(EventSplitter().feed(b"data: 0123456789"))


def test_the_ends_of_streams_are_known() -> None:
    assert is_last("data: [DONE]")
    assert is_last('event: response.completed\ndata: {"a": 1}')
    assert not is_last('data: {"a": 1}')
    assert data_of(": comment\ndata: a\ndata: b") == "a\nb"
    assert parsed(": comment") is None
    with pytest.raises(TypeError):
        parsed("data: 3")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0', 1600),
        ('vllm:cache_config_info{block_size="16",a="x\\"},y",num_gpu_blocks="100"} 1\n' * 2, 3200),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', None),
        ("", None),
    ],
)
def test_the_kv_cache_is_read_from_the_metrics(text: str, tokens: int | None) -> None:
    assert kv_tokens(text) == tokens


def test_concurrency_is_what_the_kv_cache_holds_between_one_and_the_most() -> None:
    assert concurrency(102_400, per_request=4096, most=256) == 25
    assert concurrency(100, per_request=4096, most=256) == 1
    assert concurrency(None, per_request=4096, most=256) == 256
    assert concurrency(1 << 30, per_request=1, most=256) == 256


def test_failures_are_text_that_is_json() -> None:
    error = json.loads(failure("no", status=400)["error"])
    assert error == {"message": "no", "type": "engine_error", "code": 400}


def test_a_worker_leaves_with_0_when_told_and_with_11_when_its_engine_died(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = engine.Engine(["true"], {}, port=1)
    worker = handler.Worker(settings(stop_timeout=0.1), child, jobs=3)
    try:
        assert worker.scale(1) == worker.scale(3) == 3
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.engine_died(1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [0, 11]
    assert child.stopping
