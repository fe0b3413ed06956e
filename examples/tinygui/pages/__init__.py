"""A second world: screens like web pages, with the same labels and the same question language as the first."""
