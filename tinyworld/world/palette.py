"""The world's colours, in levels of 0 to 255."""

SKY = {  # colours at the top and at the horizon
    "noon": ((74, 144, 226), (196, 224, 246)),
    "dusk": ((72, 66, 128), (246, 176, 132)),
    "night": ((8, 10, 36), (44, 54, 104)),
}
LIGHT = {"noon": (1.0, 1.0, 1.0), "dusk": (0.92, 0.78, 0.76), "night": (0.58, 0.62, 0.82)}
SOIL = {"meadow": (98, 172, 74), "desert": (224, 184, 116), "snowfield": (222, 230, 240)}
PAINT = {"red": (218, 44, 44), "yellow": (250, 208, 34), "blue": (44, 82, 226), "purple": (184, 56, 196)}
ROCK = (112, 100, 96)
WOOD = (104, 70, 44)
DARK = (52, 46, 58)
GLOW = (255, 226, 150)
COAT = {"fox": (228, 112, 34), "wolf": (58, 64, 98)}
LEGS = {"fox": (74, 42, 34), "wolf": (40, 44, 70)}
TIP = {"fox": (246, 240, 230), "wolf": (40, 44, 70)}
