"""Hold memory programs: what the pipeline allocates and when, with symbolic sizes.

A routine is a list of events. Storages are numbered by birth; a size is a whole multiple of an area of the latent:

    routine "unet"                         routine "img2img/guided/..." (the pipeline call)
      BIRTH 0  320*2 * batch*h*w             STAGE unet
      CONVOLUTION  kernel 0                  CALL  unet, batch x 2  -> leaves storage 7
      BIRTH 1  320*2 * batch*h*w             BIRTH 8  4*2 * batch*h*w
      DEATH 0                                DEATH 7
      (storage 1 is never freed: the result)

From compiled routines to the events of one request:

    files.py     sd15.json, sd15.bin -> Library of routines
    names.py     the request, batch and size of a call -> the name of its routine
    assemble.py  weights, then the pipeline call with every CALL expanded (vae_tiles.py expands tiles and slices)
    history.py   Flat, the expanded history with symbolic sizes -> Events, in bytes for one batch and size
    vae_alone.py the same for one half of the VAE
"""
