# SGLang's own image with this package in it. Built by: docker build -t star-kv-sglang .
FROM lmsysorg/sglang:v0.5.23

WORKDIR /opt/star-kv-sglang
COPY pyproject.toml setup.py README.md LICENSE ./
COPY star_kv_sglang star_kv_sglang
COPY triton_ops triton_ops
COPY patches patches
# Its dependencies are all in the image; one that is not ends the build instead of replacing the image's torch.
RUN python3 -m pip install --no-cache-dir --no-deps . \
    && star-kv --version

EXPOSE 30000
ENTRYPOINT ["star-kv", "serve"]
CMD ["--help"]
