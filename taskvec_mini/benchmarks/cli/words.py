"""What `--help` says after the options of each command: examples, and how it works."""

from __future__ import annotations

PROGRAM = "python -m taskvec_mini.benchmarks"
OVERVIEW = f"""examples:
  {PROGRAM} list
  {PROGRAM} finetune --tasks mnist gtsrb --epochs 3
  {PROGRAM} merge --tasks mnist gtsrb --epoch 1 --rule task_arithmetic
  {PROGRAM} evaluate --tune

These four lines are a whole experiment: what there is; one encoder finetuned on each of two tasks; their
task vectors after one epoch, added up; the merged model beside the pretrained and the finetuned ones.

Texts instead of images? Add --suite text to finetune. No data on this machine? Add --suite digits: small
real digits, which need no download."""
FINETUNE = f"""examples:
  {PROGRAM} finetune --tasks mnist gtsrb --epochs 3
  {PROGRAM} finetune --suite digits --tasks digits mirrored --out local/digits
  {PROGRAM} finetune --suite text --tasks sst2 trec6 --out local/texts
  {PROGRAM} finetune --suite hub --backbone ViT-B-32-quickgelu --learning-rate 1e-5
  {PROGRAM} finetune --epochs 10 --learning-rate 1e-5 --schedule cosine --clip-norm 1
  {PROGRAM} finetune --engine ray --address 10.0.0.1:6379 --out /shared/runs

Each task gets a folder under --out, with a checkpoint for each epoch. Only the encoder is trained; the head
(--heads) is made first, under the pretrained encoder, and stays frozen. A run that was stopped, at any
moment, is taken up again by the same command and ends in the same weights. Other settings need another
--out. With --engine ray all machines must see --out and --data under the same paths; set OMP_NUM_THREADS,
and every worker has so many threads and takes so many CPUs, or one GPU where there are any."""
MERGE = f"""examples:
  {PROGRAM} merge --tasks mnist gtsrb --epoch 1
  {PROGRAM} merge --rule ties --option density=0.3 --out local/ties.safetensors

The file holds one task vector; taskvec_mini.TaskVector.load(path) reads it. It is not scaled: `evaluate`
chooses the scaling coefficient. `list` shows the rules with their options."""
EVALUATE = f"""examples:
  {PROGRAM} evaluate --tune
  {PROGRAM} evaluate --vector local/ties.safetensors --scaling-coef 0.3

The table has a row for each task: the accuracy of the pretrained encoder (zero-shot), of the one finetuned
on this task (individual), of the merged one, and merged / individual (normalised). --tune tries a range of
scaling coefficients and keeps the best mean accuracy on the validation part; the test part decides
nothing."""
RECORD = f"""examples:
  {PROGRAM} list
  {PROGRAM} record STUDY
  {PROGRAM} record clip --backbone tiny-clip --suite digits --budget-minutes 1 --out clip.json
  {PROGRAM} record clip --budget-minutes 60 --gpu --data images --runs drive/MyDrive/clip
  {PROGRAM} record clip --gpu --engine ray --address 10.0.0.1:6379 --data /shared --runs /shared/clip

A study is a long experiment behind a chapter. Its record is one JSON file with the results and all that is
needed to make them again: this command, the commit, versions, seeds, seconds, checksums of the data.

The study `clip` trains first one epoch of every task, then a second one, and so on within its budget. It
downloads the images of suite `hub` into --data; the first `clip` line above downloads nothing. With
--engine ray the epochs of a round are spread over the workers of a cluster, and every machine must see --runs
and --data under the same paths."""
THROUGHPUT = f"""examples:
  {PROGRAM} throughput
  {PROGRAM} throughput --backbone ViT-B-32-quickgelu --images 256 --batch-size 64
  {PROGRAM} throughput --backbone ViT-L-14-quickgelu --device cuda --precision bfloat16 --compile

Finetunes on images of noise, in turn with a plain float32 loop over a DataLoader that opens every image by
itself, and prints images a second of both and the share of the device's peak that the encoder's arithmetic
takes. Nothing is downloaded: the weights are random."""
