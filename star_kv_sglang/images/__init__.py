"""A screenshot is paid for once: features that stay where they are, in the API process and in the scheduler."""
