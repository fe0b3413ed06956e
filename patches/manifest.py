"""Every seam, as data. ``activate`` checks them at start; a test compares them with the installed SGLang."""

from __future__ import annotations

from collections.abc import Iterable

from star_kv_sglang.patches.reads import READS
from star_kv_sglang.patches.seam import Seam, SeamKind

_UNTIL_POLICIES = "SGLang has an interface for KV policies in its radix tree"

FLAGS = Seam(
    target="sglang.srt.server_args.ServerArgs",
    kind=SeamKind.REPLACE,
    signature=None,
    why="--kv-policy and its companions: a subclass of the Struct with annotated fields",
    upstream="srt/server_args.py",
    remove_when="plugins can declare flags",
)
"""The only seam that is active with ``--kv-policy full``: without it the flag itself could not be read."""

HOOKS = (
    Seam(
        target="sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation",
        kind=SeamKind.AROUND,
        signature="(self, batch, forward_batch=None, pp_proxy_tensors=None, is_verify=False, "
        "skip_attn_backend_init=None, *, capture_hidden_mode=None, return_kv_loc_plan=False)",
        why="the last place that knows a batch's requests before its forward, and the first behind it on its stream",
        upstream="srt/managers/tp_worker.py",
        remove_when=_UNTIL_POLICIES,
        hook="around_forward_batch_generation",
    ),
    Seam(
        target="sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        kind=SeamKind.AFTER,
        signature="(self, kvc, num_layers)",
        why="the side pools are counted when SGLang sizes the pool, so that nothing runs out of memory later",
        upstream="srt/model_executor/pool_configurator.py",
        remove_when="plugins can declare memory that grows with the pool",
        hook="after_compute_cell_size",
    ),
    Seam(
        target="sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
        kind=SeamKind.AFTER,
        signature="(self, pre_model_load_memory)",
        why="room for scoring at the end of a prefill is left beside the pool",
        upstream="srt/mem_cache/kv_cache_configurator.py",
        remove_when="plugins can declare a workspace",
        hook="after_profile_available_bytes",
    ),
    Seam(
        target="sglang.srt.managers.scheduler.Scheduler.init_running_status",
        kind=SeamKind.AFTER,
        signature="(self)",
        why="requests that wait may share a prefix that must then stay whole",
        upstream="srt/managers/scheduler.py",
        remove_when="the tree is told about waiting requests",
        hook="after_init_running_status",
    ),
    Seam(
        target="sglang.srt.managers.scheduler.Scheduler.is_disable_overlap_for_batch",
        kind=SeamKind.AFTER,
        signature="(self, batch, last_batch)",
        why="a prompt is pruned before its first decode step: outputs do not depend on what else is scheduled; a "
        "prefill that follows sees none of its rows",
        upstream="srt/managers/scheduler.py",
        remove_when="the prune is queued on the device in the same step as the prefill",
        hook="after_is_disable_overlap_for_batch",
    ),
    Seam(
        target="sglang.srt.managers.scheduler.Scheduler.flush_cache",
        kind=SeamKind.AFTER,
        signature="(self, empty_cache=True)",
        why="new weights empty SGLang's caches, but not that of embeddings: it holds what the old vision tower saw",
        upstream="srt/managers/scheduler.py",
        remove_when="SGLang empties its cache of embeddings with the others",
        hook="after_flush_cache",
    ),
    Seam(
        target="sglang.srt.managers.scheduler.Scheduler.get_internal_state",
        kind=SeamKind.AROUND,
        signature="(self, recv_req)",
        why="the policy's report in /server_info; questions about the tree, which travel in the request's name",
        upstream="srt/managers/scheduler.py",
        remove_when="plugins can add to /server_info, and ask the scheduler",
        hook="around_scheduler_state",
    ),
    Seam(
        target="sglang.srt.beam_search.coordinator.BeamCoordinator.validate_and_init",
        kind=SeamKind.AROUND,
        signature="(self, req, recv_req)",
        why="beam search copies a row to rows that no request has: their holes would be read as slot 0",
        upstream="srt/beam_search/coordinator.py",
        remove_when="the holes of copied rows are known",
        hook="around_validate_and_init",
    ),
    Seam(
        target="sglang.srt.dllm.mixin.scheduler.SchedulerDllmMixin.validate_dllm_request",
        kind=SeamKind.AFTER,
        signature="(self, req)",
        why="asked of every request before it is queued: no wrong kv_* key comes further, whatever way it came in",
        upstream="srt/dllm/mixin/scheduler.py",
        remove_when="plugins can check requests",
        hook="after_validate_dllm_request",
    ),
    Seam(
        target="sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
        kind=SeamKind.AROUND,
        signature="(self, req, is_retracted=False)",
        why="a prompt that leaves screenshots out has its branch's ids while it waits, so that others share them",
        upstream="srt/managers/scheduler.py",
        remove_when="plugins can change a request before it is queued",
        hook="around_add_request_to_queue",
    ),
    Seam(
        target="sglang.srt.managers.schedule_batch.Req.init_next_round_input",
        kind=SeamKind.AROUND,
        signature="(self, tree_cache=None, cow_mamba=None)",
        why="a prompt that leaves screenshots out is matched as its branch has it, or as it came where that has gone",
        upstream="srt/managers/schedule_batch.py",
        remove_when="the tree can say which ids a request has",
        hook="around_init_next_round_input",
    ),
    Seam(
        target="sglang.srt.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
        kind=SeamKind.AROUND,
        signature="(self, *, req)",
        why="usage counts what the client sent, and not what it left out",
        upstream="srt/managers/scheduler_components/output_streamer.py",
        remove_when="a request says how long its prompt was when it came",
        hook="around_accept",
    ),
    Seam(
        target="sglang.srt.managers.mm_schedule._move_items_to_device",
        kind=SeamKind.AROUND,
        signature="(items, device, data_embedding_func)",
        why="a screenshot's features are uploaded from pinned memory: the host does not wait for the step before",
        upstream="srt/managers/mm_schedule.py",
        remove_when="SGLang uploads features from pinned memory",
        hook="around_move_items_to_device",
    ),
    Seam(
        target="sglang.srt.managers.mm_schedule._batch_encode_per_image_misses",
        kind=SeamKind.AROUND,
        signature="(data_embedding_func, per_image_requests, device)",
        why="uploaded features are not copied back: the host would wait for the vision tower in the middle of a step",
        upstream="srt/managers/mm_schedule.py",
        remove_when="SGLang keeps the features that it uploaded from the CPU",
        hook="around_batch_encode_per_image_misses",
    ),
)

REQUEST_HOOKS = (
    Seam(
        target="sglang.srt.entrypoints.api_contract.generate_contract_error",
        kind=SeamKind.AFTER,
        signature="(body)",
        why="what is wrong with a request's kv_* keys is its client's 400, before a stream has begun",
        upstream="srt/entrypoints/api_contract.py",
        remove_when="plugins can check requests",
        hook="after_generate_contract_error",
    ),
    Seam(
        target="sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase.handle_request",
        kind=SeamKind.AROUND,
        signature="(self, request, raw_request)",
        why="what is wrong with a request's kv_* keys is its client's 400; its model drops keys that it does not know",
        upstream="srt/entrypoints/openai/serving_base.py",
        remove_when="plugins can check requests",
        hook="around_handle_request",
    ),
    *(
        Seam(
            target=f"sglang.srt.entrypoints.{method}",
            kind=SeamKind.AROUND,
            signature=f"(self, request, {raw_request})",
            why="an endpoint that hands no custom_params on drops kv_* keys; its client is told with a 400",
            upstream=f"srt/entrypoints/{upstream}",
            remove_when="plugins can check requests",
            hook=hook,
        )
        for method, raw_request, upstream, hook in (
            (
                "openai.serving_responses.OpenAIServingResponses.create_responses",
                "raw_request=None",
                "openai/serving_responses.py",
                "around_create_responses",
            ),
            (
                "anthropic.serving.AnthropicServing.handle_messages",
                "raw_request",
                "anthropic/serving.py",
                "around_handle_messages",
            ),
            ("ollama.serving.OllamaServing.handle_chat", "raw_request", "ollama/serving.py", "around_ollama"),
            ("ollama.serving.OllamaServing.handle_generate", "raw_request", "ollama/serving.py", "around_ollama"),
        )
    ),
    Seam(
        target="sglang.srt.entrypoints.grpc_bridge.RuntimeHandle._run_openai_request",
        kind=SeamKind.AROUND,
        signature="(self, serving_key, json_body, chunk_callback, streaming, trace_headers=None, "
        "is_disconnected_fn=None)",
        why="the body of an OpenAI call by gRPC, before its model drops keys that it does not know",
        upstream="srt/entrypoints/grpc_bridge.py",
        remove_when="plugins can check requests",
        hook="around_run_openai_request",
    ),
    Seam(
        target="sglang.srt.managers.io_struct.GenerateReqInput._handle_parallel_sampling",
        kind=SeamKind.AROUND,
        signature="(self)",
        why="several screenshots of one prompt stay that prompt's when SGLang makes a batch of its n samples",
        upstream="srt/managers/io_struct.py",
        remove_when="SGLang takes several images with n above 1",
        hook="around_handle_parallel_sampling",
    ),
)
"""Hooks of the processes that answer clients; put in place when their arguments ask for a policy."""

IMAGE_HOOKS = (
    Seam(
        target="sglang.srt.multimodal.media_artifacts.base.MediaArtifactCacheMixin."
        "_run_preprocess_and_build_artifact_batch",
        kind=SeamKind.AROUND,
        signature="(self, entries)",
        why="the features of a screenshot move into shared memory once, before SGLang's cache holds them",
        upstream="srt/multimodal/media_artifacts/base.py",
        remove_when="SGLang keeps the features of its image cache where the scheduler can map them",
        hook="around_build_artifact_batch",
    ),
    Seam(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager._send_one_request",
        kind=SeamKind.AROUND,
        signature="(self, tokenized_obj)",
        why="a request says where its features lie; SGLang would copy them into a new segment",
        upstream="srt/managers/tokenizer_manager.py",
        remove_when="SGLang keeps the features of its image cache where the scheduler can map them",
        hook="around_send_one_request",
    ),
    Seam(
        target="sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.get_internal_state",
        kind=SeamKind.AROUND,
        signature="(self)",
        why="what became of screenshots, in /server_info",
        upstream="srt/managers/tokenizer_control_mixin.py",
        remove_when="plugins can add to /server_info",
        hook="around_get_internal_state",
    ),
)
"""Hooks of the process that answers clients; put in place when it keeps processed screenshots."""

_REFERENCES = "clients can name an image by the digest of its bytes"
_CHAT = "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat"

REFERENCE_HOOKS = (
    Seam(
        target="sglang.srt.entrypoints.http_server.serve_generate_request",
        kind=SeamKind.AROUND,
        signature="(obj, request)",
        why="a request of /generate that refers to unknown images is answered before a stream has begun",
        upstream="srt/entrypoints/http_server.py",
        remove_when=_REFERENCES,
        hook="around_serve_generate_request",
    ),
    *(
        Seam(
            target=f"{_CHAT}.{method}",
            kind=SeamKind.AROUND,
            signature="(self, adapted_request, request, raw_request)",
            why="a chat completion that refers to unknown images is answered before a stream has begun",
            upstream="srt/entrypoints/openai/serving_chat.py",
            remove_when=_REFERENCES,
            hook="around_handle_chat",
        )
        for method in ("_handle_streaming_request", "_handle_non_streaming_request")
    ),
    Seam(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager._tokenize_one_request",
        kind=SeamKind.AROUND,
        signature="(self, obj)",
        why="references that came another way than by HTTP, and the salt under which images came",
        upstream="srt/managers/tokenizer_manager.py",
        remove_when=_REFERENCES,
        hook="around_tokenize_one_request",
    ),
    Seam(
        target="sglang.srt.multimodal.media_artifacts.base.MediaArtifactCacheMixin.prepare_media_artifacts",
        kind=SeamKind.AROUND,
        signature="(self, media_data, *, content_hashes=None, featureless_hit_mask=None, modality=None)",
        why="a known image takes its place among processed ones, and what was sent as bytes is learned",
        upstream="srt/multimodal/media_artifacts/base.py",
        remove_when=_REFERENCES,
        hook="around_prepare_media_artifacts",
    ),
    Seam(
        target="sglang.srt.multimodal.processors.qwen_vl.QwenVLImageProcessor._process_mm_data_uncached",
        kind=SeamKind.AROUND,
        signature="(self, image_data, input_text, request_obj, *args, **kwargs)",
        why="where SGLang goes back to the images themselves, references are refused",
        upstream="srt/multimodal/processors/qwen_vl.py",
        remove_when=_REFERENCES,
        hook="around_process_mm_data_uncached",
    ),
)
"""Hooks of the process that answers clients; put in place with a policy, and where processed screenshots are kept."""

PROGRAM_HOOKS = (
    Seam(
        target="sglang.lang.interpreter.StreamExecutor.fork",
        kind=SeamKind.AROUND,
        signature="(self, size=1, position_ids_offset=None)",
        why="a fork looks at its state's text before the state's thread has written it, and then sends no common part",
        upstream="lang/interpreter.py",
        remove_when="SGLang waits for a state before it looks whether its forks have something in common",
        hook="around_fork",
    ),
)
"""Hooks of a client that runs programs; put in place when it makes an ``Endpoint``."""

_TREE = "sglang.srt.mem_cache.radix_cache.RadixCache"
_TREE_WHY = "sizes are counted in live slots, and sealed segments are never split"
_NATIVE = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
_FLASHINFER = "sglang.srt.layers.attention.flashinfer_backend.FlashInferAttnBackend"
_DECODE = "sglang.srt.layers.attention.flashinfer_backend.FlashInferIndicesUpdaterDecode"
_SDPA = (
    "(self, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, {extend}encoder_lens=None, "
    "scaling=None, enable_gqa=False, causal=False, is_cross_attn=False, sliding_window_size=None)"
)


def _tree_seam(method: str, signature: str) -> Seam:
    return Seam(
        f"{_TREE}.{method}", SeamKind.SUBCLASS, signature, _TREE_WHY, "srt/mem_cache/radix_cache.py", _UNTIL_POLICIES
    )


_ENDPOINT = "sglang.lang.backend.runtime_endpoint.RuntimeEndpoint"

EXTENSION_POINTS = (
    *(
        Seam(
            f"{_ENDPOINT}.{method}",
            SeamKind.SUBCLASS,
            signature,
            "programs with several screenshots in a state, several samples, and the model's own chat template",
            "lang/backend/runtime_endpoint.py",
            "SGLang's frontend takes several images",
        )
        for method, signature in (
            ("__init__", "(self, base_url, api_key=None, verify=None, chat_template_name=None)"),
            ("generate", "(self, s, sampling_params)"),
            ("generate_stream", "(self, s, sampling_params)"),
            ("_add_images", "(self, s, data)"),
        )
    ),
    Seam(
        target="sglang.srt.mem_cache.registry.register_radix_cache_backend",
        kind=SeamKind.REGISTRY,
        signature="(name, factory)",
        why="our tree is selected by name",
        upstream="srt/mem_cache/registry.py",
        remove_when="never: this is SGLang's public way",
    ),
    Seam(
        target="sglang.srt.environ.Envs.SGLANG_HTTP_SERVER_APP_PATH",
        kind=SeamKind.REGISTRY,
        signature=None,
        why="what each of several processes that answer clients imports: it loads no plugins",
        upstream="srt/environ.py",
        remove_when="SGLang loads plugins in every process that it starts",
    ),
    Seam(
        target="sglang.srt.layers.attention.attention_registry.ATTENTION_BACKENDS",
        kind=SeamKind.REGISTRY,
        signature=None,
        why="the backend keeps its name and understands rows with holes",
        upstream="srt/layers/attention/attention_registry.py",
        remove_when="attention backends take their page table from the tree",
    ),
    _tree_seam("__init__", "(self, params)"),
    _tree_seam("reset", "(self)"),
    _tree_seam("insert", "(self, params)"),
    _tree_seam("match_prefix", "(self, params)"),
    Seam(
        "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.on_release",
        SeamKind.SUBCLASS,
        "(self, req, *, checkpointed)",
        "the one place where a request ends, whatever ended it",
        "srt/mem_cache/base_prefix_cache.py",
        _UNTIL_POLICIES,
    ),
    _tree_seam("checkpoint", "(self, req, *, up_to)"),
    _tree_seam("_insert_cache", "(self, req, token_ids, *, key_limit=None, split_prompt=False)"),
    _tree_seam("evict", "(self, params)"),
    _tree_seam("inc_lock_ref", "(self, node)"),
    _tree_seam("dec_lock_ref", "(self, node, params=None)"),
    _tree_seam("_match_prefix_helper", "(self, node, key)"),
    _tree_seam("_insert_helper", "(self, node, key, value, priority=0, inserted_len=0)"),
    _tree_seam("_split_node", "(self, key, child, split_len)"),
    _tree_seam("_delete_leaf", "(self, node)"),
    _tree_seam("_total_size_helper", "(self)"),
    _tree_seam("all_values_flatten", "(self)"),
    *(
        Seam(
            f"{backend}.{method}",
            SeamKind.SUBCLASS,
            signature,
            why,
            upstream,
            "attention backends take their page table from the tree",
        )
        for backend, upstream, construct in (
            (_NATIVE, "srt/layers/attention/torch_native_backend.py", "(self, model_runner)"),
            (
                _FLASHINFER,
                "srt/layers/attention/flashinfer_backend.py",
                "(self, model_runner, skip_prefill=False, kv_indptr_buf=None, kv_last_page_len_buf=None, "
                "init_new_workspace=False)",
            ),
        )
        for method, signature, why in (
            ("__init__", construct, "the backend keeps SGLang's name and behaviour"),
            ("init_forward_metadata", "(self, forward_batch)", "the page table of a step is made once for all layers"),
            (
                "forward_extend",
                "(self, q, k, v, layer, forward_batch, save_kv_cache=True)",
                "the policy's queries score a layer's keys behind its attention",
            ),
        )
    ),
    Seam(
        target=f"{_DECODE}.__init__",
        kind=SeamKind.SUBCLASS,
        signature="(self, model_runner, attn_backend)",
        why="decode gets a compacted page table and live lengths",
        upstream="srt/layers/attention/flashinfer_backend.py",
        remove_when="attention backends take their page table from the tree",
    ),
    Seam(
        target="sglang.srt.server_args.ServerArgs.resolve_once",
        kind=SeamKind.SUBCLASS,
        signature="(self)",
        why="a set-up that cannot run with a policy is refused before weights load",
        upstream="srt/server_args.py",
        remove_when="plugins can check the resolved arguments",
    ),
    Seam(
        target="sglang.srt.server_args.ServerArgs.from_cli_args",
        kind=SeamKind.SUBCLASS,
        signature="(cls, args)",
        why="a wrong command line is one message, a wrong argument of sglang.Engine an exception",
        upstream="srt/server_args.py",
        remove_when="SGLang ends with the message of an error in a command line",
    ),
    Seam(
        target="sglang.srt.server_args.ServerArgs.__reduce__",
        kind=SeamKind.SUBCLASS,
        signature="(self)",
        why="a spawned process learns the policy from the arguments that it is sent, before it loads plugins",
        upstream="srt/server_args.py",
        remove_when="plugins are loaded with the arguments at hand",
    ),
    Seam(
        target="sglang.srt.entrypoints.engine.Engine.server_args_class",
        kind=SeamKind.REPLACE,
        signature=None,
        why="Engine binds the class of its arguments when its module is imported, before hooks apply",
        upstream="srt/entrypoints/engine.py",
        remove_when="plugins can declare flags",
    ),
    Seam(
        target=f"{_NATIVE}._run_sdpa_forward_extend",
        kind=SeamKind.SUBCLASS,
        signature=_SDPA.format(extend="extend_prefix_lens, extend_seq_lens, "),
        why="attention gets a compacted page table and live lengths",
        upstream="srt/layers/attention/torch_native_backend.py",
        remove_when="attention backends take their page table from the tree",
    ),
    Seam(
        target=f"{_NATIVE}._run_sdpa_forward_decode",
        kind=SeamKind.SUBCLASS,
        signature=_SDPA.format(extend=""),
        why="attention gets a compacted page table and live lengths",
        upstream="srt/layers/attention/torch_native_backend.py",
        remove_when="attention backends take their page table from the tree",
    ),
    Seam(
        target=f"{_DECODE}.call_begin_forward",
        kind=SeamKind.SUBCLASS,
        signature="(self, wrapper, paged_kernel_lens, paged_kernel_lens_sum, kv_indptr, "
        "kv_start_idx, spec_info, seq_lens_cpu, use_sliding_window_kv_pool=False, fixed_split_size=None, "
        "disable_split_kv=None, *, plan, req_pool_indices)",
        why="decode gets a compacted page table and live lengths; spec_info may carry a page table",
        upstream="srt/layers/attention/flashinfer_backend.py",
        remove_when="attention backends take their page table from the tree",
    ),
    Seam(
        target=f"{_FLASHINFER}._prepare_dequant_workspace_metadata_for_extend",
        kind=SeamKind.SUBCLASS,
        signature="(self, forward_batch, use_ragged=False)",
        why="where prefill accepts a page table of another making",
        upstream="srt/layers/attention/flashinfer_backend.py",
        remove_when="attention backends take their page table from the tree",
    ),
)

ALL = (FLAGS, *HOOKS, *REQUEST_HOOKS, *IMAGE_HOOKS, *REFERENCE_HOOKS, *PROGRAM_HOOKS, *EXTENSION_POINTS, *READS)


def flags(fields: Iterable[str]) -> tuple[Seam, ...]:
    """One seam for each argument of the server that a rule looks at."""
    return tuple(
        Seam(
            f"sglang.srt.arg_groups.fields.*.{field}",
            SeamKind.FLAG,
            None,
            "a set-up that cannot run with a policy is refused",
            "srt/arg_groups/fields",
            "the set-up works with a policy",
        )
        for field in fields
    )
