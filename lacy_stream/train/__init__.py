"""Recipe -> run -> checkpoint -> folder: the room of Composer.

trainer      builds what a recipe names, and trains; model  the GPT-2 of the paper; recipe_data  its texts
call_mask    the objective as an Algorithm of Composer; reference  the second model of Rho-1
monitor      logs what training waited for; record  keeps the recipe in the checkpoint; resume  where a run starts
checkpoint   file -> model; export  model -> folder for transformers
"""
