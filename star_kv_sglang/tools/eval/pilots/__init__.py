"""The two measurements behind the method, for any model and trajectory: is position worth a prior, and do scores drift?

Read in this order: `capture` (what a model's window attends to, turn by turn), `measures` (information, entropy,
distances), `page` (numbers, plots and the page).
"""
