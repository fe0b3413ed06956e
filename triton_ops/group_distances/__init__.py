"""How far each token's vector lies from its screenshot's mean, key head by key head."""
