"""The demo: the whole way on Fashion-MNIST, with a teacher that comes along."""
