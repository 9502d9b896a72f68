# mmaselect with the maintained OpenMMLab releases, in the versions that are tested together.
#
#   docker build -t mmaselect .
#   docker run --rm mmaselect mmaselect list
#   docker run --rm --gpus all -v "$PWD:/data" mmaselect mmaselect select /data/photos --pretrained MODEL --out /data/pick
#
# PyTorch's default wheels for Linux hold CUDA, and run on a CPU as well. For the smaller CPU wheels give the index
# that PyTorch's install page names for them: --build-arg TORCH_INDEX=ADDRESS
FROM python:3.11-slim

ARG TORCH_INDEX=

# What OpenCV loads.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mmaselect
COPY requirements requirements
# PyTorch first, so that no other package brings another build of it.
RUN grep -E '^(torch|torchvision)==' requirements/tested-onedl.txt > /tmp/torch.txt \
    && pip install --no-cache-dir -r /tmp/torch.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    && pip install --no-cache-dir -r requirements/tested-onedl.txt
COPY . .
RUN pip install --no-cache-dir -e ".[onedl,text,checkpoints]"

RUN useradd --create-home user
USER user
# Models, selections and features: mount a folder here to keep them.
ENV MMASELECT_CACHE=/home/user/.cache/mmaselect
WORKDIR /data
CMD ["mmaselect", "--help"]
