"""Distillation: a teacher's knowledge into a student, inside Keras's own `fit()`."""

from kdlite.distill.distiller import Distiller as Distiller
