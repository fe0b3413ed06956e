"""What of SGLang is called, read or set without being extended, as data."""

from __future__ import annotations

from collections.abc import Iterable

from star_kv_sglang.patches.seam import Seam, SeamKind

_SRT = "sglang.srt"
_NEVER = "never: this is how SGLang tells it"


def _used(owner: str, names: str, why: str, kind: SeamKind = SeamKind.READ) -> Iterable[Seam]:
    """One seam for each of the names, words separated by blanks, of a class or module below ``sglang.srt``."""
    return (Seam(f"{_SRT}.{owner}.{name}", kind, None, why, _file_of(owner), _NEVER) for name in names.split())


def _called(target: str, signature: str, why: str) -> Seam:
    return Seam(f"{_SRT}.{target}", SeamKind.CALL, signature, why, _file_of(target.rpartition(".")[0]), _NEVER)


def _programs(name: str, signature: str | None = None) -> Iterable[Seam]:
    """What frontend programs use; a signature makes it a call."""
    kind = SeamKind.READ if signature is None else SeamKind.CALL
    module = name.split(".")
    file = "/".join(part for part in module[:-1] if part[:1].islower())
    yield Seam(f"sglang.{name}", kind, signature, "programs with screenshots", f"{file}.py", _NEVER)


def _file_of(owner: str) -> str:
    """File of a class or module below ``sglang.srt``."""
    module, _, name = owner.rpartition(".")
    return f"srt/{(module if name[:1].isupper() else owner).replace('.', '/')}.py"


_REQUESTS = "a request, and what it holds of the pool and the tree"
_WINDOWS = "prompts that leave screenshots out, and what is told of them"
_BATCHES = "which requests and positions a forward computes"
_TREES = "the tree's nodes, sizes and locks, counted in live slots"
_IMAGES = "where a prompt's screenshots lie"
_POOLS = "K and V, and how large their pool is"
_ATTENTION = "the page table of an attention backend"
_INPUTS = "the norm that a layer begins with: what comes in shows sinks"
_CLIENTS = "a client's mistake is the client's 400"
_SAMPLES = "the screenshots of a prompt that has several samples"
_RANKS = "the ranks of tensor parallelism: what each has of the key heads, and that all decide alike"
_FEATURES = "features that move into shared memory, and requests that say where they lie"
_REFERENCES = "an image that a client names by the digest of its bytes"
_ARTIFACTS = "multimodal.media_artifacts.base.MediaArtifactCacheMixin"
_WARM_UP = "SGLang's own request to warm up, which no trace is of"
_LOOKS = "questions about the tree, from the process that answers clients to the scheduler"
_CPU_SERVER = "a server in CPU mode, whose processes are forks of one that has imported SGLang"
_START = "arguments, and what SGLang makes of them"
_ENDS = "where a prompt enters the tree and a request ends"

READS: tuple[Seam, ...] = (
    # requests and batches
    *_used(
        "managers.schedule_batch.Req",
        "rid kv lock last_node prefix_len extra_key cache_salt priority sampling_params multimodal_inputs "
        "customized_info origin_input_ids output_ids output_ids_through_stop full_untruncated_fill_ids get_fill_ids "
        "finished cached_tokens",
        _REQUESTS,
    ),
    *_used(
        "managers.schedule_batch.Req",
        "session input_embeds positional_embed_overrides retracted_stain logprob_start_len",
        _WINDOWS,
    ),
    *_used(
        "managers.schedule_batch.MultimodalInputs",
        "mrope_positions mrope_position_delta mrope_position_delta_repeated_cache token_modalities",
        _WINDOWS,
    ),
    *_used("managers.scheduler.Scheduler", "tokenizer max_req_len", _WINDOWS),
    *_used(
        "managers.scheduler_components.output_streamer._GenerationStreamAccumulator",
        "prompt_tokens cached_tokens",
        _WINDOWS,
    ),
    _called("mem_cache.radix_cache.RadixKey.raw_token_ids", "(self)", _WINDOWS),
    *_used("managers.schedule_batch.ReqKvInfo", "req_pool_idx cache_protected_len cache_inserted_len", _REQUESTS),
    *_used("sampling.sampling_params.SamplingParams", "custom_params max_new_tokens", "what a request asks for"),
    *_used(
        "managers.schedule_batch.ScheduleBatch",
        "reqs forward_mode decoding_reqs extend_lens seq_lens_cpu req_pool_indices_cpu",
        _BATCHES,
    ),
    *_used("managers.schedule_batch.MultimodalInputs", "mm_items", _IMAGES),
    *_used(
        "managers.schedule_batch.MultimodalDataItem",
        "offsets model_specific_data hash padding_sequence is_image",
        _IMAGES,
    ),
    *_used("managers.scheduler.Scheduler", "waiting_queue metrics_collector_context", "requests that wait; metrics"),
    *_used(
        "observability.metrics_collector.SchedulerMetricsCollectorContext",
        "collector current_scheduler_metrics_enabled",
        "labels of the metrics",
    ),
    *_used("observability.metrics_collector.SchedulerMetricsCollector", "labels", "labels of the metrics"),
    *_used("managers.io_struct.GetInternalStateReqOutput", "internal_state", "the report in /server_info"),
    # what clients send
    *_used("managers.io_struct", "GenerateReqInput", _CLIENTS),
    *_used("managers.io_struct.GenerateReqInput", "is_single mm_hashes mm_content_hashes", _SAMPLES),
    *_used("entrypoints.openai.serving_base.OpenAIServingBase", "tokenizer_manager", _WARM_UP),
    *_used("managers.tokenizer_manager.TokenizerManager", "server_status", _WARM_UP),
    *_used("managers.tokenizer_manager.ServerStatus", "Starting", _WARM_UP),
    *_used("entrypoints.openai.protocol.ChatCompletionRequest", "custom_params", _CLIENTS),
    *_used("entrypoints.openai.protocol.CompletionRequest", "custom_params", _CLIENTS),
    *_used("entrypoints.http_server", "generate_contract_error", "the route of /generate calls it by this name"),
    _called(
        "entrypoints.openai.serving_base.OpenAIServingBase.create_error_response",
        "(self, message, err_type='BadRequestError', status_code=400, param=None)",
        _CLIENTS,
    ),
    _called(
        "entrypoints.anthropic.serving.AnthropicServing._error_response",
        "(self, status_code, error_type, message, exception_name=None)",
        _CLIENTS,
    ),
    _called(
        "entrypoints.openai.serving_responses.OpenAIServingResponses.create_error_response",
        "(self, message, err_type='invalid_request_error', status_code=400, param=None)",
        _CLIENTS,
    ),
    _called("entrypoints.http_server._create_error_response", "(e)", _CLIENTS),
    _called("entrypoints.grpc_bridge.RuntimeHandle._get_openai_request_class", "(self, serving_key)", _CLIENTS),
    _called(
        "entrypoints.grpc_bridge.RuntimeHandle._safe_callback", "(self, chunk_callback, payload, **kwargs)", _CLIENTS
    ),
    *_used("entrypoints.http_server", "app", "the app of each of several processes that answer clients"),
    *_used("environ.Envs", "SGLANG_RUST_SERVER", "a server that asks none of our checks", SeamKind.FLAG),
    _called("mem_cache.common.checkpoint_kv_cache", "(req, tree_cache)", _ENDS),
    _called("mem_cache.common.release_kv_cache", "(req, tree_cache, *, checkpoint)", _ENDS),
    # frontend programs
    *_programs("lang.backend.runtime_endpoint.RuntimeEndpoint.get_model_name", "(self)"),
    *_programs("lang.backend.runtime_endpoint.RuntimeEndpoint._assert_success", "(self, res)"),
    *_programs("lang.backend.runtime_endpoint.RuntimeEndpoint._generate_http_request", "(self, s, data)"),
    *_programs("lang.backend.runtime_endpoint.RuntimeEndpoint._handle_dtype_to_regex", "(self, sampling_params)"),
    *_programs("lang.chat_template.ChatTemplate.get_prompt", "(self, messages)"),
    *_programs("lang.chat_template.ChatTemplate.get_prefix_and_suffix", "(self, role, hist_messages)"),
    *_programs("lang.chat_template.chat_template_registry"),
    *_programs("lang.interpreter.StreamExecutor.text_"),
    *_programs("lang.interpreter.StreamExecutor.images_"),
    *_programs("lang.interpreter.StreamExecutor.sync", "(self)"),
    *_programs("lang.ir.SglSamplingParams.n"),
    *_programs("lang.ir.SglSamplingParams.to_srt_kwargs", "(self)"),
    *_programs("utils.http_request", "(url, json=None, stream=False, api_key=None, verify=None, method=None)"),
    # the tree
    *_used(
        "mem_cache.radix_cache.RadixCache",
        "disable page_size req_to_token_pool token_to_kv_pool_allocator root_node evictable_leaves evictable_size_ "
        "protected_size_ eviction_strategy device kv_events",
        _TREES,
    ),
    *_used("mem_cache.radix_cache.RadixCache", "evictable_size protected_size", _TREES, SeamKind.CALL),
    _called("mem_cache.radix_cache.RadixCache._inc_hit_count", "(self, node)", _TREES),
    _called("mem_cache.radix_cache.RadixCache.path_device_indices", "(self, node)", _TREES),
    _called("mem_cache.base_prefix_cache.BasePrefixCache.lock", "(self, node)", _TREES),
    _called("mem_cache.base_prefix_cache.BasePrefixCache.unlock", "(self, lock)", _TREES),
    _called("mem_cache.base_prefix_cache.BasePrefixCache.free_kv_row", "(self, kv, ranges)", _ENDS),
    _called("mem_cache.base_prefix_cache.BasePrefixCache.prefix_device_indices", "(self, req)", _TREES),
    _called(
        "mem_cache.base_prefix_cache.BasePrefixCache.update_eviction_metrics", "(self, num_evicted, start_time)", _TREES
    ),
    *_used(
        "mem_cache.radix_cache.TreeNode",
        "id children parent key value lock_ref last_access_time priority",
        _TREES,
    ),
    *_used("mem_cache.radix_cache.RadixKey", "token_ids extra_key cache_salt match child_key page_aligned", _TREES),
    *_used("mem_cache.base_prefix_cache.MatchResult", "last_device_node device_prefix_len", _TREES),
    *_used("mem_cache.base_prefix_cache.MatchPrefixParams", "key", _TREES),
    *_used("mem_cache.base_prefix_cache.EvictParams", "num_tokens", _TREES),
    *_used("mem_cache.base_prefix_cache.EvictResult", "num_tokens_evicted", _TREES),
    *_used("mem_cache.base_prefix_cache.IncLockRefResult", "delta", _TREES),
    *_used("mem_cache.base_prefix_cache.DecLockRefResult", "delta", _TREES),
    *_used("mem_cache.registry.TreeCacheBuildContext", "params", "what SGLang builds the tree with"),
    _called("mem_cache.events.KVCacheEventRecorder.record_remove", "(self, node, medium=None)", "events of evictions"),
    _called("mem_cache.evict_policy.EvictionStrategy.get_priority", "(self, node)", "SGLang's order of eviction"),
    # pools and the model
    *_used("mem_cache.allocator.base.BaseTokenToKVPoolAllocator", "size available_size", _POOLS),
    _called(
        "mem_cache.allocator.base.BaseTokenToKVPoolAllocator.free_segment", "(self, free_index, *, start_pos)", _POOLS
    ),
    *_used("mem_cache.memory_pool.ReqToTokenPool", "req_to_token", "rows: the slot of each position of a request"),
    _called("mem_cache.memory_pool.ReqToTokenPool.write", "(self, indices, values)", "rows of requests"),
    *_used("mem_cache.memory_pool.KVCache", "start_layer layer_num", _POOLS),
    _called("mem_cache.memory_pool.KVCache.get_key_buffer", "(self, layer_id)", _POOLS),
    _called("mem_cache.memory_pool.KVCache.get_value_buffer", "(self, layer_id)", _POOLS),
    *_used("mem_cache.kv_cache_configurator.KVCacheConfigurator", "kv_cache_dtype layer_info model_config", _POOLS),
    *_used("model_executor.model_runner_components.layer_setup.ModelLayerInfo", "num_effective_layers", _POOLS),
    *_used(
        "model_executor.model_runner.ModelRunner",
        "model model_config token_to_kv_pool req_to_token_pool init_new_workspace",
        _POOLS,
    ),
    *_used(
        "configs.model_config.ModelConfig",
        "hf_config context_len is_multimodal is_hybrid_swa get_num_kv_heads get_total_num_kv_heads",
        "shape and kind of the model",
    ),
    # tensor parallel ranks
    _called("runtime_context.get_parallel", "()", _RANKS),
    _called("distributed.parallel_state.get_tp_group", "()", _RANKS),
    *_used("distributed.parallel_state.GroupCoordinator", "world_size rank_in_group", _RANKS),
    _called(
        "distributed.parallel_state.GroupCoordinator.all_gather_into_tensor",
        "(self, output, input)",
        _RANKS,
    ),
    # attention
    *_used(
        "model_executor.forward_batch_info.ForwardBatch",
        "forward_mode out_cache_loc req_pool_indices seq_lens seq_lens_cpu",
        _BATCHES,
    ),
    *_used("model_executor.forward_batch_info.ForwardMode", "is_extend", _BATCHES),
    *_used(
        "layers.radix_attention.RadixAttention",
        "layer_id scaling tp_q_head_num head_dim qk_head_dim k_scale_float",
        "shape of a layer's attention",
    ),
    *_used("models.qwen2.Qwen2DecoderLayer", "input_layernorm", _INPUTS),
    *_used("models.qwen3.Qwen3DecoderLayer", "input_layernorm", _INPUTS),
    *_used("models.qwen3_moe.Qwen3MoeDecoderLayer", "input_layernorm", _INPUTS),
    *_used("layers.attention.torch_native_backend.TorchNativeAttnBackend", "req_to_token_pool", _ATTENTION),
    *_used(
        "layers.attention.flashinfer_backend.FlashInferAttnBackend",
        "req_to_token_pool forward_metadata dq_page_table dq_paged_kernel_lens indices_updater_decode",
        _ATTENTION,
    ),
    *_used("layers.attention.flashinfer_backend.PrefillMetadata", "prefill_wrappers", _ATTENTION),
    Seam(
        "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper._paged_kv_indices_buf",
        SeamKind.READ, None, _ATTENTION, "decode.py", _NEVER,
    ),
    Seam(
        "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.is_cuda_graph_enabled",
        SeamKind.READ, None, _ATTENTION, "decode.py", _NEVER,
    ),
    Seam(
        "flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper.forward_return_lse",
        SeamKind.CALL, None, "the log-sum-exp of every query of a prefill", "prefill.py", _NEVER,
    ),
    # a server in CPU mode
    Seam("sglang.cli.main.main", SeamKind.CALL, "()", _CPU_SERVER, "cli/main.py", _NEVER),
    *_used("models.registry", "ModelRegistry", _CPU_SERVER),
    # the start
    *_used("managers.schedule_batch.MultimodalDataItem", "feature", _FEATURES),
    *_used(
        "managers.tokenizer_manager.TokenizerManager",
        "rid_to_state mm_processor enable_metrics metrics_collector",
        _FEATURES,
    ),
    *_used("multimodal.processors.base_processor.BaseMultimodalProcessor", "mm_preprocess_cache", _FEATURES),
    *_used("managers.io_struct", "_USE_PICKLE_IPC", _FEATURES),
    *_used("managers.mm_schedule", "embedding_cache", _FEATURES),
    *_used("mem_cache.multimodal_cache.MultiModalStaticCache", "clear", _FEATURES, SeamKind.CALL),
    _called("multimodal.transport.determine_tensor_transport_mode", "()", _FEATURES),
    _called("runtime_context.get_serving", "()", _FEATURES),
    *_used("arg_groups.fields.serving.Serving", "skip_tokenizer_init", _FEATURES, SeamKind.FLAG),
    *_used(
        "arg_groups.fields.serving.Serving", "preferred_sampling_params tokenizer_worker_num", _CLIENTS, SeamKind.FLAG
    ),
    *_used("multimodal.cache.preprocess_cache.MultimodalPreprocessCache", "stats", _FEATURES, SeamKind.CALL),
    *_used("multimodal.processors.base_processor.BaseMultimodalProcessor", "mm_processor_executor", _FEATURES),
    *_used("multimodal.processors.qwen_vl.QwenVLImageProcessor", "prepare_artifact_batch", _FEATURES, SeamKind.CALL),
    *_used("multimodal.processors.qwen_vl.QwenVLImagePreprocessArtifact", "feature", _FEATURES),
    _called("runtime_context.process_model_config", "()", _FEATURES),
    *_used("managers.scheduler.Scheduler", "server_args tp_worker", _FEATURES),
    *_used("environ.Envs", "SGLANG_VLM_CACHE_SIZE_MB", _FEATURES),
    _called("utils.common.get_device_memory_capacity", "(device=None)", _FEATURES),
    *_used("configs.model_config.ModelConfig", "dtype quantization", _FEATURES),
    *_used("managers.mm_schedule.PerImageRequestInfo", "items", _FEATURES),
    *_used("models.qwen2_vl.Qwen2VLForConditionalGeneration", "visual", _FEATURES),
    *_used("models.qwen2_vl.Qwen2VisionTransformer", "dtype", _FEATURES),
    *_used(
        "managers.mm_utils.ShmPointerMMData",
        "materialize close_and_unlink __getstate__ __setstate__",
        _FEATURES,
        SeamKind.SUBCLASS,
    ),
    # references to images
    *_used("managers.io_struct.GenerateReqInput", "image_data cache_salt extra_key", _REFERENCES),
    *_used("entrypoints.http_server", "_global_state ORJSONResponse", _REFERENCES),
    *_used("entrypoints.http_server._GlobalState", "tokenizer_manager", _REFERENCES),
    *_used("utils.common.ImageData", "url content_hash", _REFERENCES),
    *_used("multimodal.processors.base_processor.BaseMultimodalProcessor", "trust_mm_content_hashes", _REFERENCES),
    *_used("multimodal.processors.qwen_vl.QwenVLImageProcessor", "artifact_modality", _REFERENCES),
    *_used("multimodal.processors.qwen_vl.QwenVLImagePreprocessArtifact", "artifact_key", _REFERENCES),
    *_used("multimodal.cache.preprocess_cache.MultimodalPreprocessCache", "enabled", _REFERENCES),
    _called(f"{_ARTIFACTS}._artifact_key", "(self, content_digest, source, *, modality=None)", _REFERENCES),
    _called(
        f"{_ARTIFACTS}._get_cached_artifact",
        "(self, key, content_digest, modality, *, allow_featureless)",
        _REFERENCES,
    ),
    # who looks at the tree
    *_used("managers.io_struct", "GetInternalStateReq", _LOOKS),
    *_used("constants", "HEALTH_CHECK_RID_PREFIX", "turns are counted, SGLang's own checks are not"),
    *_used("managers.tokenizer_control_mixin", "_COMMUNICATOR_SPECS", _LOOKS),
    _called("managers.tokenizer_manager.TokenizerManager.auto_create_handle_loop", "(self)", _LOOKS),
    *_used("managers.tokenizer_manager.TokenizerManager", "server_args tokenizer", _LOOKS),
    _called("managers.communicator.FanOutCommunicator.__call__", "(self, obj)", _LOOKS),
    *_used("entrypoints.http_server", "Response orjson_response", _LOOKS),
    _called("utils.auth.auth_level", "(level)", _LOOKS),
    *_used("utils.auth.AuthLevel", "ADMIN_OPTIONAL", _LOOKS),
    *_used("arg_groups.fields.parallel.Parallel", "dp_size", _LOOKS, SeamKind.FLAG),
    *_used("plugins.hook_registry.HookRegistry", "register apply_hooks", _START, SeamKind.CALL),
    *_used("plugins.hook_registry.HookType", "AROUND AFTER REPLACE", _START),
    *_used("arg_groups.arg_utils.Arg", "help choices", _START),
    _called("arg_groups.overrides.declare_resolution", "(server_args, source, **fields)", _START),
    _called("arg_groups.model_override_base.resolving_view", "(server_args)", _START),
    _called("arg_groups.model_override_base.resolved_view", "(server_args)", _START),
    _called("arg_groups.model_override_base.attention_backends_of", "(cfg)", _START),
    _called("arg_groups.model_override_base.is_attention_backend_not_set", "(cfg)", _START),
    _called("arg_groups.model_override_base.model_config_of", "(server_args)", _START),
    _called("arg_groups.model_override_base.use_mla_backend", "(server_args)", _START),
    _called("runtime_context.get_schedule", "()", _START),
    *_used("arg_groups.fields.schedule.Schedule", "chunked_prefill_size page_size", _START, SeamKind.FLAG),
)  # fmt: skip
