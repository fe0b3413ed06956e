# SGLang's own image with this package in it. Built by: docker build -t star-kv-sglang .
FROM lmsysorg/sglang:v0.5.23

COPY pyproject.toml setup.py README.md LICENSE /src/
COPY star_kv_sglang /src/star_kv_sglang
COPY triton_ops /src/triton_ops
COPY patches /src/patches
# What it needs is in the image, and pip would not know which torch. The sources go: in a folder that holds them, Python
# would find half of the package there first.
RUN python3 -m pip install --no-cache-dir --no-deps /src && rm -r /src
WORKDIR /
RUN python3 -c "import star_kv_sglang.patches, star_kv_sglang.triton_ops, numpy, packaging, prometheus_client, yaml" \
    && star-kv --version

EXPOSE 30000
ENTRYPOINT ["star-kv", "serve"]
CMD ["--help"]
