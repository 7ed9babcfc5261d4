variable "name" {
  description = "Names everything that is made here."
  type        = string
  default     = "farm-workers"
}

variable "checkpoint" {
  description = "The checkpoint that the workers of this group serve; its farm_desired_workers is what the group follows."
  type        = string
}

variable "checkpoint_uri" {
  description = "The checkpoint's .safetensors file in S3."
  type        = string
  validation {
    condition     = can(regex("^s3://[^/]+/.+[.]safetensors$", var.checkpoint_uri))
    error_message = "It must look like s3://bucket/key.safetensors."
  }
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
  description = "A SecureString parameter with the text of worker.env: database, Redis and bucket."
  type        = string
  default     = "/farm/worker.env"
}

variable "bucket" {
  description = "The farm's bucket of pictures."
  type        = string
}

variable "vpc_id" {
  description = "Where the machines stand."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets that reach Postgres, Redis and S3; several zones have more spot capacity."
  type        = list(string)
}

variable "metrics_cidr_blocks" {
  description = "From where Prometheus comes."
  type        = list(string)
  default     = []
}

variable "instance_types" {
  description = "Machines to choose from, all with gpus_per_instance GPUs."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge", "g6e.xlarge"]
}

variable "gpus_per_instance" {
  description = "How many workers a machine runs."
  type        = number
  default     = 1
}

variable "ami_parameter" {
  description = "The public parameter that names a machine image with NVIDIA's driver, Python 3.11 or newer and the AWS command line."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
}

variable "min_size" {
  description = "Machines that are always there."
  type        = number
  default     = 1
}

variable "max_size" {
  description = "Machines at most."
  type        = number
  default     = 10
}

variable "on_demand_base" {
  description = "How many of them are never spot machines."
  type        = number
  default     = 1
}

variable "on_demand_percentage" {
  description = "Share of on-demand machines above the base, in percent."
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
