"""The functions that SGLang's hook registry calls: each hands over to the engine, or to what there is of it so far."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sglang.srt.arg_groups.overrides import resolving_view

from star_kv_sglang import request_params
from star_kv_sglang.config import NEVER
from star_kv_sglang.engine import runtime
from star_kv_sglang.errors import ConfigError, ReferenceRefusedError, UnknownImagesError
from star_kv_sglang.images import runtime as images
from star_kv_sglang.images import upload
from star_kv_sglang.images.references import refuse_uncached
from star_kv_sglang.introspection import protocol
from star_kv_sglang.patches import introspection_routes

if TYPE_CHECKING:
    import torch
    from sglang.lang.interpreter import StreamExecutor
    from sglang.srt.beam_search.coordinator import BeamCoordinator
    from sglang.srt.entrypoints.anthropic.serving import AnthropicServing
    from sglang.srt.entrypoints.grpc_bridge import RuntimeHandle
    from sglang.srt.entrypoints.openai.protocol import OpenAIServingRequest
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses
    from sglang.srt.managers.io_struct import GenerateReqInput, GetInternalStateReq, GetInternalStateReqOutput
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator


UNKNOWN = 422
"""Status of the answer that asks for bytes: clients do not repeat it by themselves, as they do 409, and SGLang does not
use it here, as it does 404."""


def around_forward_batch_generation(
    original: Callable[..., Any], worker: TpModelWorker, batch: ScheduleBatch | None, *args: Any, **kwargs: Any
) -> Any:
    """Plan a prefill before its forward, score and choose after it, on the stream that runs it."""
    engine = runtime.engine()
    plan = engine.begin_batch(batch) if batch is not None else None
    result = original(worker, batch, *args, **kwargs)
    engine.end_batch(plan)
    return result


def after_compute_cell_size(
    result: int, configurator: DefaultPoolConfigurator, kvc: KVCacheConfigurator, num_layers: int
) -> int:
    """Count the side pools among the bytes that each token of the pool takes."""
    from sglang.srt.runtime_context import get_parallel

    del configurator
    num_groups = kvc.model_config.get_num_kv_heads(get_parallel().tp_size)
    return result + runtime.get().memory.bytes_per_slot(num_layers, kvc.kv_cache_dtype, num_groups=num_groups)


def after_profile_available_bytes(result: int, kvc: KVCacheConfigurator, pre_model_load_memory: int) -> int:
    """Leave room for scoring a prompt of the model's context length beside a whole chunk of others."""
    from sglang.srt.runtime_context import get_parallel, get_schedule

    del pre_model_load_memory
    config = kvc.model_config
    # The resolved size: ``kvc.server_args`` is what the user asked for, where it is not set.
    num_tokens = config.context_len + max(get_schedule().chunked_prefill_size, 0)
    num_groups = config.get_num_kv_heads(get_parallel().tp_size)
    if get_parallel().tp_size > 1:
        # Beside its own attention each rank gathers that of all, and puts it in order.
        num_groups += 2 * config.get_total_num_kv_heads()
    return result - runtime.get().memory.reserve(
        result, kvc.layer_info.num_effective_layers, num_tokens, num_groups=num_groups
    )


def after_init_running_status(result: None, scheduler: Scheduler) -> None:
    """The scheduler's queues exist, and with them all that the engine is made of."""
    del result
    runtime.get().start(scheduler)
    rounded_to = _tower_dtype()
    if rounded_to is not None and resolving_view(scheduler.server_args).mm_preprocess_cache_size_mb:
        upload.require_tower_dtype(scheduler.tp_worker.model_runner.model, rounded_to)


def after_is_disable_overlap_for_batch(
    result: bool, scheduler: Scheduler, batch: ScheduleBatch | None, last_batch: ScheduleBatch | None
) -> bool:
    """Handle a prefill's result before a step that must see its prompts pruned."""
    del scheduler
    engine = runtime.engine()
    if batch is not None:
        engine.note_scheduled(batch)
    return result or (last_batch is not None and engine.must_prune_before(batch))


def after_flush_cache(result: bool, scheduler: Scheduler, *args: Any, **kwargs: Any) -> bool:
    """Empty SGLang's cache of embeddings with its other caches: they are what the old vision tower saw."""
    from sglang.srt.managers import mm_schedule

    del scheduler, args, kwargs
    if result and mm_schedule.embedding_cache is not None:
        mm_schedule.embedding_cache.clear()
    return result


def around_scheduler_state(
    original: Callable[..., GetInternalStateReqOutput], scheduler: Scheduler, recv_req: GetInternalStateReq
) -> GetInternalStateReqOutput:
    """Add the policy's report to what ``/server_info`` shows; answer whoever looks at the tree with nothing else."""
    question = protocol.asked(recv_req.rid)
    if question is not None:
        from sglang.srt.managers.io_struct import GetInternalStateReqOutput

        return GetInternalStateReqOutput(internal_state={protocol.ANSWER: runtime.engine().show(question)})
    result = original(scheduler, recv_req)
    result.internal_state["star_kv"] = runtime.engine().report()
    return result


def around_add_request_to_queue(
    original: Callable[..., None], scheduler: Scheduler, req: Req, *args: Any, **kwargs: Any
) -> None:
    """Recognise which screenshots a request leaves out, so that others know what it shares with them while it waits."""
    windows = runtime.engine().windows
    if windows is not None:
        windows.recognise(req)
    original(scheduler, req, *args, **kwargs)


def around_init_next_round_input(
    original: Callable[..., None], req: Req, tree_cache: Any = None, *args: Any, **kwargs: Any
) -> None:
    """Match a request that leaves screenshots out as its branch has it; a later chunk is matched with nothing."""
    windows = runtime.engine().windows
    if windows is None or tree_cache is None:
        original(req, tree_cache, *args, **kwargs)
    else:
        windows.match(req, lambda: original(req, tree_cache, *args, **kwargs))


def around_accept(original: Callable[..., None], accumulator: Any, *, req: Req) -> None:
    """Count what a client sent and what of it was cached, where the engine has put back what the client left out."""
    windows, num_told = runtime.engine().windows, len(accumulator.prompt_tokens)
    original(accumulator, req=req)
    window = None if windows is None else windows.window_of(req)
    if window is not None and len(accumulator.prompt_tokens) > num_told:
        accumulator.prompt_tokens[-1] -= window.num_added
        accumulator.cached_tokens[-1] = max(0, accumulator.cached_tokens[-1] - window.num_added)


def around_validate_and_init(
    original: Callable[..., str | None], coordinator: BeamCoordinator, req: Req, *args: Any
) -> str | None:
    """Refuse beam search: its other rows are copies of a request's row, and nobody knows their holes."""
    if runtime.get().config.prunes:
        return "Beam search (beam_width above 1) is not supported with a --kv-policy that prunes; use n instead."
    return original(coordinator, req, *args)


def after_validate_dllm_request(result: str | None, scheduler: Scheduler, req: Req) -> str | None:
    """Refuse a request whose wishes are wrong and came past the checks of the HTTP API, or that nobody would fulfil."""
    del scheduler
    config = runtime.get().config
    return result or request_params.problem_of(
        req.sampling_params.custom_params,
        prunes=config.prunes,
        has_window=config.image_window is not None,
        recognises=config.recognise_windows != NEVER,
    )


def around_move_items_to_device(
    original: Callable[..., None], items: Sequence[Any], device: torch.device, data_embedding_func: Any
) -> None:
    """Upload features of new screenshots from pinned memory."""
    counters = runtime.get().counters
    counters.num_encoded_images += sum(item.is_image() for item in items)
    tower = getattr(getattr(data_embedding_func, "__self__", None), "visual", None)
    counters.num_pageable_uploads += upload.pin(items, device, getattr(tower, "dtype", None))
    original(items, device, data_embedding_func)


def around_batch_encode_per_image_misses(
    original: Callable[..., Any], data_embedding_func: Any, per_image_requests: Sequence[Any], device: torch.device
) -> Any:
    """Let features that are uploaded stay on the CPU too."""
    with upload.kept_on_host(item for request in per_image_requests for item in request.items):
        return original(data_embedding_func, per_image_requests, device)


def after_generate_contract_error(result: str | None, body: Any) -> str | None:
    """Tell the client of ``/generate`` what is wrong with its kv_* keys; SGLang knows no better place for them."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    if isinstance(body, dict):
        try:
            request_params.check_native_body(body, known=GenerateReqInput.__dataclass_fields__)
        except ConfigError as error:
            return str(error)
    return result


async def around_handle_request(
    original: Callable[..., Any], serving: OpenAIServingBase, request: OpenAIServingRequest, raw_request: Any
) -> Any:
    """Tell the client of an OpenAI endpoint what is wrong with its kv_* keys, before SGLang answers."""
    fields = type(request).model_fields
    if "custom_params" in fields:
        # FastAPI has decoded it before. A request by gRPC has no body of its own: it was checked before it was one.
        body = await raw_request.json() if hasattr(raw_request, "json") else {}
        try:
            request_params.check_openai_body(body, known=fields)
        except ConfigError as error:
            return serving.create_error_response(str(error))
        if serving.tokenizer_manager.server_status.name == "Starting":
            # SGLang's own request to warm up: nobody would know its screenshot on a trace.
            request.custom_params = {"kv_trace": False, **(request.custom_params or {})}
    return await original(serving, request, raw_request)


async def _problem_without_wishes(request: Any, raw_request: Any) -> str | None:
    """What is wrong with the kv_* keys of a request to an endpoint that hands none on; None where there are none."""
    body = await raw_request.json()
    try:
        request_params.check_body_without_wishes(body, type(request).model_fields, endpoint=raw_request.url.path)
    except ConfigError as error:
        return str(error)
    return None


async def around_create_responses(
    original: Callable[..., Any], serving: OpenAIServingResponses, request: Any, raw_request: Any = None
) -> Any:
    """Tell the client of ``/v1/responses`` that nobody reads its kv_* keys."""
    problem = None if raw_request is None else await _problem_without_wishes(request, raw_request)
    return await original(serving, request, raw_request) if problem is None else serving.create_error_response(problem)


async def around_handle_messages(
    original: Callable[..., Any], serving: AnthropicServing, request: Any, raw_request: Any
) -> Any:
    """Tell the client of ``/v1/messages`` that nobody reads its kv_* keys."""
    problem = await _problem_without_wishes(request, raw_request)
    if problem is not None:
        return serving._error_response(status_code=400, error_type="invalid_request_error", message=problem)
    return await original(serving, request, raw_request)


async def around_ollama(original: Callable[..., Any], serving: Any, request: Any, raw_request: Any) -> Any:
    """Tell the client of Ollama's API that nobody reads its kv_* keys."""
    from sglang.srt.entrypoints.http_server import _create_error_response

    problem = await _problem_without_wishes(request, raw_request)
    if problem is not None:
        return _create_error_response(ConfigError(problem))
    return await original(serving, request, raw_request)


def _object_of(json_body: bytes) -> dict[str, Any]:
    """The JSON object in a body; what holds none is SGLang's to refuse."""
    try:
        body = json.loads(json_body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def around_run_openai_request(
    original: Callable[..., Any],
    handle: RuntimeHandle,
    serving_key: str,
    json_body: bytes,
    chunk_callback: Any,
    streaming: bool,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Tell the client of an OpenAI call by gRPC what is wrong with its kv_* keys, as SGLang tells of a wrong body."""
    fields = handle._get_openai_request_class(serving_key).model_fields
    # A body may be megabytes of screenshots, and most name no key of ours: SGLang alone parses those.
    if "custom_params" in fields and request_params.PREFIX.encode() in json_body:
        try:
            request_params.check_openai_body(_object_of(json_body), known=fields)
        except ConfigError as error:
            told = json.dumps({"error": {"message": str(error), "type": "BadRequest"}}).encode()
            status = {"error": str(error)} if streaming else {"status_code": 400}
            handle._safe_callback(chunk_callback, told, finished=True, **status)
            return
    await original(handle, serving_key, json_body, chunk_callback, streaming, *args, **kwargs)


def around_handle_parallel_sampling(original: Callable[..., None], request: GenerateReqInput) -> None:
    """Keep what a single prompt has a list of together when SGLang makes a batch of its samples."""
    was_single = request.is_single
    original(request)
    if was_single and not request.is_single:
        for name in ("image_data", "mm_hashes", "mm_content_hashes"):
            given = getattr(request, name)
            # A list in the list is a batch of one already, and SGLang takes an empty list for no images.
            if isinstance(given, list) and given and not isinstance(given[0], list):
                setattr(request, name, [given])


def around_fork(original: Callable[..., Any], executor: StreamExecutor, size: int = 1, *args: Any) -> Any:
    """Let a program's state be complete before it forks: SGLang sends the common part ahead only if it sees any."""
    executor.sync()
    return original(executor, size, *args)


def _receiver_takes_addresses() -> bool:
    """Whether SGLang's receiver turns pointers to features into tensors; where it does not, features travel as ever."""
    from sglang.srt.managers import io_struct
    from sglang.srt.multimodal.transport import determine_tensor_transport_mode
    from sglang.srt.runtime_context import get_serving

    is_one_node = determine_tensor_transport_mode() != "default"
    return is_one_node and io_struct._USE_PICKLE_IPC and not get_serving().skip_tokenizer_init


def _tower_dtype() -> torch.dtype | None:
    """The vision tower rounds features to this before all else; None where that is not sure.

    Asked each time: engines of several dtypes may follow one another in a process.
    """
    from sglang.srt.runtime_context import process_model_config

    config = process_model_config()
    return config.dtype if config.quantization is None else None


async def around_build_artifact_batch(original: Callable[..., Any], processor: Any, entries: Sequence[Any]) -> Any:
    """Process new screenshots and move their features into shared memory, once, beside the event loop."""
    if not processor.mm_preprocess_cache.enabled:  # an engine without the cache may follow one with it in this process
        return await original(processor, entries)
    run = partial(asyncio.get_running_loop().run_in_executor, images.worker())
    store, dtype = images.store(), _tower_dtype()

    def process() -> list[Any]:
        with store.processing(len(entries)):
            return store.move_artifacts(processor.prepare_artifact_batch(entries), dtype)

    if processor.mm_processor_executor is None:
        # SGLang would process them on the event loop, and every other request would wait. One job for both steps: of
        # requests that come together the first goes on while the others are processed.
        return await run(process)
    with store.processing(len(entries)):
        return await run(store.move_artifacts, await original(processor, entries), dtype)


async def around_send_one_request(original: Callable[..., Any], manager: TokenizerManager, tokenized_obj: Any) -> Any:
    """Send where a request's features lie instead of a copy of them."""
    items = getattr(tokenized_obj.mm_inputs, "mm_items", None)
    if items and _receiver_takes_addresses():
        images.store().detach_features(items, manager.rid_to_state.get(tokenized_obj.rid))
        _publish_images(manager)
    return await original(manager, tokenized_obj)


def _publish_images(manager: TokenizerManager) -> None:
    if manager.enable_metrics:
        told = images.publisher(str(manager.metrics_collector.labels["model_name"]))
        told.publish(images.report(manager.mm_processor.mm_preprocess_cache.stats()))


async def around_get_internal_state(original: Callable[..., Any], manager: TokenizerManager) -> Any:
    """Add what became of screenshots to what ``/server_info`` shows."""
    states = await original(manager)
    # An engine without the cache may follow one with it in this process.
    if manager.mm_processor is None or not manager.mm_processor.mm_preprocess_cache.enabled:
        return states
    numbers = images.report(manager.mm_processor.mm_preprocess_cache.stats())
    for state in states:
        state["star_kv_images"] = numbers
    return states


async def around_serve_generate_request(original: Callable[..., Any], obj: GenerateReqInput, request: Any) -> Any:
    """Answer a request of ``/generate`` that refers to unknown images, before a stream has begun."""
    from sglang.srt.entrypoints import http_server

    refused = _resolve_references(http_server._global_state.tokenizer_manager, obj)
    return await original(obj, request) if refused is None else refused


async def around_handle_chat(
    original: Callable[..., Any], serving: OpenAIServingChat, adapted_request: GenerateReqInput, *args: Any
) -> Any:
    """Answer a chat completion that refers to unknown images, before a stream has begun."""
    refused = _resolve_references(serving.tokenizer_manager, adapted_request)
    return await original(serving, adapted_request, *args) if refused is None else refused


def _resolve_references(manager: TokenizerManager, obj: GenerateReqInput) -> Any | None:
    """Replace a request's references by what they refer to; where that cannot be, the answer for its client."""
    from sglang.srt.entrypoints.http_server import ORJSONResponse

    try:
        images.references().resolve(obj, manager.mm_processor)
    except UnknownImagesError as error:
        _publish_images(manager)
        body = {"object": "error", "message": str(error), "type": "UnknownImages", "param": None, "code": UNKNOWN}
        return ORJSONResponse({**body, "unknown_images": error.digests}, UNKNOWN)
    except ReferenceRefusedError as error:
        body = {"object": "error", "message": str(error), "type": "BadRequestError", "param": None, "code": 400}
        return ORJSONResponse(body, 400)
    return None


async def around_tokenize_one_request(original: Callable[..., Any], manager: TokenizerManager, obj: Any) -> Any:
    """Replace references that did not come by HTTP, and say under which salt the request's images came."""
    references = images.references()
    references.resolve(obj, manager.mm_processor)
    with references.sent_by(obj):
        tokenized = await original(manager, obj)
    references.put_back(obj)
    introspection_routes.note_screenshots(manager, obj, tokenized)
    return tokenized


async def around_prepare_media_artifacts(
    original: Callable[..., Any], processor: Any, media_data: Sequence[Any], **lists: Any
) -> Any:
    """Process what came as bytes; what references stand for is processed already."""
    return await images.references().prepare(original, processor, media_data, **lists)


async def around_process_mm_data_uncached(
    original: Callable[..., Any], processor: Any, image_data: Any, *args: Any, **kwargs: Any
) -> Any:
    """Refuse references where SGLang goes back to the images themselves."""
    refuse_uncached(image_data)
    return await original(processor, image_data, *args, **kwargs)
