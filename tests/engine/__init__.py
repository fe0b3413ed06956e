"""Tests on SGLang's real engine with tiny models: on the CPU, or on the GPU where there is one."""
