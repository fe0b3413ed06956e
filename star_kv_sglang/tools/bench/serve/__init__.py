"""Full servers under load: the plugin's policies against stock SGLang, on a model with random weights."""
