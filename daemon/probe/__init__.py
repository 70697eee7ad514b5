"""The probe: a child process that alone talks to a GPU driver.

A wedged driver leaves its callers where no signal reaches them, and a library that is shut down
while it is asked takes the process with it. So the daemon never loads one: it asks a child over a
socket, one line of JSON each way, and throws the child away when it is late.
"""
