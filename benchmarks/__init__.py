"""Measurements of speed and accuracy. They print numbers and judge none: that is for the reader."""

__all__: list[str] = []
