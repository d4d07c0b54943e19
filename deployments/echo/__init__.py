"""The family `echo`: repeats the prompt at a set rate, for tests, demonstrations and load tests."""
