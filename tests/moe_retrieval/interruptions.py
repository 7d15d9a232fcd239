"""Ctrl-C at a step that a test chooses."""

from moe_retrieval.training.interruption import Interruption


def pressed_at(step):
    """A stand-in for `Interruption`: Ctrl-C comes in this step, counted from 1."""

    class Pressed(Interruption):
        looks = 0

        @property
        def wanted(self):
            self.looks += 1
            return self.looks == step

        @wanted.setter
        def wanted(self, value):
            pass

    return Pressed
