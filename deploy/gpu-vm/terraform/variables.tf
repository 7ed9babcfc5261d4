variable "name" {
  description = "Name of all resources of this module."
  type        = string
  default     = "farm-workers"
}

variable "checkpoint" {
  description = "The checkpoint that the workers of this group serve; the group follows its farm_checkpoint_desired_workers."
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
  description = "Smallest number of machines."
  type        = number
  default     = 1
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
