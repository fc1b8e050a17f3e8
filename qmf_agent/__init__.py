"""The management agent: what a queue can't give. Jobs, submissions and slots as objects of QMF version 2."""
