"""Programs of SGLang's frontend language, with screenshots."""
