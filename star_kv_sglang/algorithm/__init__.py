"""The method, in torch and without the engine: layouts in, scores and states out.

Nothing is imported here: whoever reads flags needs `params`, and torch takes seconds to import.
"""
