output "group" {
  description = "The auto-scaling group's name."
  value       = aws_autoscaling_group.worker.name
}

output "role_arn" {
  description = "The workers' role, for bucket and key policies."
  value       = aws_iam_role.worker.arn
}

output "security_group_id" {
  description = "Security group of the workers; let it reach Postgres and Redis."
  value       = aws_security_group.worker.id
}
