"""Result files of the field's other tools, as sides of a comparison: one file a tool."""
