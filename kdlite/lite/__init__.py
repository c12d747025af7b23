"""Keras model to proven `.tflite`: convert, look inside, run, compare."""
