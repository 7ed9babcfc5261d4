variable "name" {
  description = "Name of all resources of this module."
  type        = string
  default     = "farm-workers"
}

variable "checkpoints" {
  description = "Names of the checkpoints to serve; none means all of the farm's bucket and of checkpoints_uri. The group follows farm_desired_workers, but one that serves a single checkpoint its farm_checkpoint_desired_workers."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for name in var.checkpoints : can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", name))])
    error_message = "A checkpoint's name has letters, digits, '.', '_' and '-'."
  }
}

variable "checkpoints_uri" {
  description = "A folder of .safetensors files in S3 that each machine copies at its first boot; empty for machines that take what they need from the farm's bucket."
  type        = string
  default     = ""
  validation {
    condition     = var.checkpoints_uri == "" || can(regex("^s3://[^/*?]+/[^*?]+/$", var.checkpoints_uri))
    error_message = "It must look like s3://bucket/folder/."
  }
}

variable "preload" {
  description = "The checkpoint that workers load when they start; empty for the first."
  type        = string
  default     = ""
  validation {
    condition     = can(regex("^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$", var.preload))
    error_message = "A checkpoint's name has letters, digits, '.', '_' and '-'."
  }
}

variable "weights_cache_bytes" {
  description = "Bytes of weights from the farm's bucket that a machine keeps on its disk; null for half of what is free."
  type        = number
  default     = null
}

variable "disk_gb" {
  description = "Size of a machine's disk: the release with torch takes 15 GB, a checkpoint 2 to 4."
  type        = number
  default     = 100
}

variable "release_uri" {
  description = "The farm's release in S3, a .tar.gz made by git archive."
  type        = string
  validation {
    condition     = can(regex("^s3://[^/]+/.+[.]tar[.]gz$", var.release_uri))
    error_message = "It must look like s3://bucket/key.tar.gz."
  }
}

variable "settings_parameter" {
  description = "The SecureString parameter with the text of worker.env: database, Redis and bucket."
  type        = string
  default     = "/farm/worker.env"
}

variable "bucket" {
  description = "The farm's bucket of pictures."
  type        = string
}

variable "vpc_id" {
  description = "The VPC of the machines."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets that reach Postgres, Redis and S3; several zones have more spot capacity."
  type        = list(string)
}

variable "metrics_cidr_blocks" {
  description = "CIDR blocks from which Prometheus scrapes the workers."
  type        = list(string)
  default     = []
}

variable "instance_types" {
  description = "Instance types to choose from, all with gpus_per_instance GPUs."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge", "g6e.xlarge"]
}

variable "gpus_per_instance" {
  description = "GPUs of a machine, and so its workers."
  type        = number
  default     = 1
}

variable "ami_parameter" {
  description = "The public parameter that names a machine image with NVIDIA's driver, Python 3.11 or newer and the AWS command line."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
}

variable "min_size" {
  description = "Smallest number of machines; 0 for a group that comes and goes with its jobs."
  type        = number
  default     = 0
}

variable "max_size" {
  description = "Largest number of machines."
  type        = number
  default     = 10
}

variable "on_demand_base" {
  description = "Number of machines that are always on-demand."
  type        = number
  default     = 1
}

variable "on_demand_percentage" {
  description = "On-demand machines above on_demand_base, in percent; the others are spot machines."
  type        = number
  default     = 0
}

variable "drain_seconds" {
  description = "How long scale-in waits for the drain; longer than TimeoutStopSec of farm-worker@.service."
  type        = number
  default     = 120
  validation {
    condition     = var.drain_seconds > 60
    error_message = "Workers may take TimeoutStopSec, 60 seconds, to drain."
  }
}
