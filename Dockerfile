# mmaselect with the maintained OpenMMLab releases.
#
#   docker build -t mmaselect .                            # CPU
#   docker build -t mmaselect --build-arg DEVICE=cu130 .   # CUDA 13.0, the driver comes from the host
#   docker run --rm mmaselect mmaselect list
#   docker run --rm --gpus all -v "$PWD:/data" mmaselect mmaselect select /data/photos --pretrained MODEL --out /data/pick
FROM python:3.11-slim

# Which wheels of PyTorch: cpu, or a CUDA version as PyTorch writes it.
ARG DEVICE=cpu

# What OpenCV loads.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mmaselect
COPY requirements requirements
# The versions that are tested together. PyTorch first, so that the other packages do not bring another build of it.
RUN grep -E '^(torch|torchvision)==' requirements/tested-onedl.txt > /tmp/torch.txt \
    && pip install --no-cache-dir -r /tmp/torch.txt --index-url "https://download.pytorch.org/whl/${DEVICE}" \
    && pip install --no-cache-dir -r requirements/tested-onedl.txt
COPY . .
RUN pip install --no-cache-dir -e ".[onedl,text,checkpoints]"

RUN useradd --create-home user
USER user
# Models, selections and features: mount a folder here to keep them.
ENV MMASELECT_CACHE=/home/user/.cache/mmaselect
WORKDIR /data
CMD ["mmaselect", "--help"]
