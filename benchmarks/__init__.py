"""Measurements of speed. They print numbers and judge none: that is left to the reader."""

__all__: list[str] = []
