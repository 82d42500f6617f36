"""What passes between stages as JSON: its types, how it is written, and how it is read and checked.

Each file has a module. A file that may change its form has a field `layout` with the number of that form; the number changes with the
form. What is read is checked against its type: whatever is wrong with it, the reader gets one line that names the file and the cure.
"""
