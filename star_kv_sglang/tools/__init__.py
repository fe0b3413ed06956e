"""What measures and draws, beside the product: `pip install 'star-kv-sglang[tools]'`. Nothing else imports it."""
